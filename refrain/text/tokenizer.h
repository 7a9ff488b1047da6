// Text to token ids and back, as a model's tokenizer.json says. The pipeline's parts live in files of their
// own. Not chat templates, and no truncation or padding: what the file says about those is not applied.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace refrain::text {

/// Whether spellings of special tokens in a text become those tokens. Text from users is parsed with `off`.
/// Added tokens that are not special are always found.
enum class SpecialTokens { off, on };

/// Whether decoding writes the spellings of special tokens.
enum class DecodeSpecial { skip, keep };

/// An immutable tokenizer: copies share it, and threads may use one at the same time.
/// Supported: BPE over bytes, as Llama 3 and Qwen have it (normalizers NFC and Replace, pre-tokenizers Split and
/// ByteLevel, decoder ByteLevel), and over characters with bytes for those that have no token, as Gemma has it
/// (decoders Replace, ByteFallback and Fuse); post-processor TemplateProcessing for the token in front. Accuracy: ids and text are those of the Python package `tokenizers` 0.23.3, whose Unicode tables
/// are used.
class Tokenizer {
 public:
  /// Reads `tokenizer_json` and, when given, `tokenizer_config_json` for add_bos_token and bos_token.
  /// Throws FileError naming file and field for what is malformed or not supported.
  static Tokenizer load(const std::filesystem::path& tokenizer_json,
                        const std::filesystem::path& tokenizer_config_json = {});
  /// Reads tokenizer.json of a model folder, and tokenizer_config.json where there is one.
  static Tokenizer load_folder(const std::filesystem::path& folder);
  /// The same from memory; `name` stands for the path in messages. An empty `tokenizer_config_json` is none.
  static Tokenizer parse(std::string_view tokenizer_json, std::string_view tokenizer_config_json,
                         const std::string& name);

  /// Ids of `utf8`, without the token of `bos()`. Throws InvalidArgument for invalid UTF-8, naming the byte
  /// offset, for more than 1 GiB, and when the file's regular expression exceeds its limit of work.
  std::vector<uint32_t> encode(std::string_view utf8, SpecialTokens special = SpecialTokens::off) const;

  /// The token to put in front of a prompt, once; nothing when neither file asks for one.
  std::optional<uint32_t> bos() const;

  /// Text of `ids`. An id without a spelling gives nothing; bytes that are no UTF-8 become U+FFFD.
  std::string decode(std::span<const uint32_t> ids, DecodeSpecial special = DecodeSpecial::skip) const;

  /// The largest id + 1.
  size_t vocab_size() const;
  bool has_spelling(uint32_t id) const;
  bool is_special(uint32_t id) const;
  /// Id of a token by its spelling in the file, where bytes are written as characters (`Ġthe` for ` the`).
  std::optional<uint32_t> id_of(std::string_view token) const;

  struct Parts;  ///< private to the reader of the file

 private:
  friend class StreamDecoder;
  explicit Tokenizer(std::shared_ptr<const Parts> parts) : parts_(std::move(parts)) {}
  /// Bytes of text, and where the run of tokens for single bytes begins that ends them, if one does.
  struct Decoded {
    std::string bytes;
    std::optional<size_t> run{};
    void end_run();
  };
  /// Appends the bytes of one token; returns whether it had any spelling to write.
  bool append_token(uint32_t id, DecodeSpecial special, bool first, Decoded& text) const;

  std::shared_ptr<const Parts> parts_;
};

/// Decodes ids one at a time. All results, joined, are what `decode` gives for all ids.
class StreamDecoder {
 public:
  explicit StreamDecoder(Tokenizer tokenizer, DecodeSpecial special = DecodeSpecial::skip)
      : tokenizer_(std::move(tokenizer)), special_(special) {}

  /// Text that has become certain: whole characters only. The bytes of an unfinished one are held back, and a
  /// run of tokens for single bytes until it has ended.
  std::string push(uint32_t id);
  /// What was held back, as U+FFFD. The decoder can then be used again for another text.
  std::string finish();

 private:
  Tokenizer tokenizer_;
  DecodeSpecial special_;
  Tokenizer::Decoded held_;
  bool first_ = true;
};

}  // namespace refrain::text

#include "refrain/format/safetensors.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "refrain/core/checked.h"
#include "refrain/core/error.h"
#include "refrain/core/foreign_text.h"
#include "refrain/format/json.h"

namespace refrain::format {
namespace {

namespace dom = simdjson::dom;

static_assert(std::endian::native == std::endian::little, "tensors are used as they lie in the file");

constexpr uint64_t kPrefixBytes = 8;
constexpr std::string_view kMetadataKey = "__metadata__";
constexpr size_t kShownText = 40;  // bytes

struct TypeInfo {
  std::string_view name;
  uint32_t bits;
  std::optional<DType> dtype;
};

constexpr TypeInfo kTypes[] = {
    {"F32", 32, DType::f32},
    {"F16", 16, DType::f16},
    {"BF16", 16, DType::bf16},
    {"F64", 64, DType::f64},
    {"U8", 8, DType::u8},
    {"I8", 8, DType::i8},
    {"U16", 16, DType::u16},
    {"I16", 16, DType::i16},
    {"U32", 32, DType::u32},
    {"I32", 32, DType::i32},
    {"U64", 64, DType::u64},
    {"I64", 64, DType::i64},
    {"BOOL", 8, DType::boolean},
    {"F4", 4, std::nullopt},
    {"F6_E2M3", 6, std::nullopt},
    {"F6_E3M2", 6, std::nullopt},
    {"F8_E5M2", 8, std::nullopt},
    {"F8_E4M3", 8, std::nullopt},
    {"F8_E8M0", 8, std::nullopt},
    {"F8_E4M3FNUZ", 8, std::nullopt},
    {"F8_E5M2FNUZ", 8, std::nullopt},
    {"C64", 64, std::nullopt},
};

const TypeInfo* find_type(std::string_view name) {
  const auto* found = std::ranges::find(kTypes, name, &TypeInfo::name);
  return found == std::end(kTypes) ? nullptr : found;
}

const char* kind_of(const dom::element& element) {
  switch (element.type()) {
    case dom::element_type::ARRAY:
      return "an array";
    case dom::element_type::OBJECT:
      return "an object";
    case dom::element_type::INT64:
      return "an integer";
    case dom::element_type::UINT64:
      return "a large integer";
    case dom::element_type::DOUBLE:
      return "a fraction";
    case dom::element_type::STRING:
      return "a string";
    case dom::element_type::BOOL:
      return "a boolean";
    case dom::element_type::NULL_VALUE:
      return "null";
  }
  return "";
}

/// Whether `element` holds more than `levels` levels of containers, itself included.
bool is_deeper_than(const dom::element& element, size_t levels) {
  const auto inside = [levels](const auto& items, auto&& value_of) {
    return levels == 0 || std::any_of(items.begin(), items.end(), [&](const auto& item) {
             return is_deeper_than(value_of(item), levels - 1);
           });
  };
  dom::array array;
  if (!element.get(array)) return inside(array, [](const dom::element& item) { return item; });
  dom::object object;
  if (!element.get(object)) return inside(object, [](const dom::key_value_pair& item) { return item.value; });
  return false;
}

struct Tensor {
  SafetensorsEntry entry;
  uint64_t begin = 0;
  uint64_t end = 0;
};

struct Parts {
  std::string_view header;
  std::span<const std::byte> data;
};

/// Reads one header; knows the path for its messages.
class HeaderReader {
 public:
  explicit HeaderReader(const std::string& path) : path_(path) {}

  [[noreturn]] void fail(const std::string& what) const { throw FileError(path_ + ": " + what); }
  [[noreturn]] void fail(std::string_view tensor, const std::string& what) const {
    fail(fmt::format("tensor {}: {}", in_quotes(tensor), what));
  }

  /// The JSON text without its padding, and the data behind it.
  Parts split(std::span<const std::byte> bytes) const {
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    if (const std::string_view other = saved_instead(text); !other.empty()) {
      fail(fmt::format("expected a safetensors file, got {}", other));
    }
    // Of a length the last bytes are zero.
    const auto prints = [](char c) { return c >= ' ' && c <= '~'; };
    if (bytes.size() >= kPrefixBytes && std::ranges::all_of(text.substr(0, kPrefixBytes), prints)) {
      const std::string_view shown = text.substr(0, kShownText);
      fail(fmt::format("expected a safetensors file, got text, {}",
                       in_quotes(shown.substr(0, shown.find_first_of("\r\n")))));
    }
    if (bytes.size() < kPrefixBytes) {
      fail(fmt::format("expected at least 8 bytes, got {}", bytes.size()));
    }
    uint64_t length = 0;
    std::memcpy(&length, bytes.data(), sizeof length);
    if (length > kSafetensorsMaxHeaderBytes) {
      fail(fmt::format("header: expected at most {} bytes, got {}", kSafetensorsMaxHeaderBytes, length));
    }
    if (length > bytes.size() - kPrefixBytes) {
      fail(fmt::format("header: expected at most the {} bytes of the file, got {}",
                       bytes.size() - kPrefixBytes, length));
    }
    const std::string_view header = text.substr(kPrefixBytes, length);
    if (!header.starts_with('{')) fail("header: expected '{' as its first byte");
    const size_t last = header.find_last_not_of(' ');
    if (header[last] != '}') fail("header: expected '}' as its last byte before the padding of spaces");
    return {header.substr(0, last + 1), bytes.subspan(kPrefixBytes + length)};
  }

  void metadata(const dom::element& value, std::map<std::string, std::string>& result) const {
    if (value.is_null()) return;
    dom::object object;
    if (value.get(object))
      fail(fmt::format("__metadata__: expected an object of strings, got {}", kind_of(value)));
    for (const auto [key, text] : object) {
      std::string_view string;
      if (text.get(string)) {
        fail(fmt::format("__metadata__: {}: expected a string, got {}", in_quotes(key), kind_of(text)));
      }
      if (!result.emplace(key, string).second) {
        fail(fmt::format("__metadata__: expected distinct keys, got {} twice", in_quotes(key)));
      }
    }
  }

  Tensor tensor(std::string_view name, const dom::element& value) const {
    if (name.size() > kSafetensorsMaxNameBytes) {
      fail(name,
           fmt::format("expected a name of at most {} bytes, got {}", kSafetensorsMaxNameBytes, name.size()));
    }
    dom::object object;
    if (value.get(object)) fail(name, fmt::format("expected an object, got {}", kind_of(value)));
    std::vector<std::string_view> keys;
    for (const auto [key, member] : object) {
      keys.push_back(key);
      if (is_deeper_than(member, kSafetensorsMaxDepth - 2)) {
        fail(name,
             fmt::format("{}: expected at most {} levels, got more", in_quotes(key), kSafetensorsMaxDepth));
      }
    }
    std::ranges::sort(keys);
    if (const auto twice = std::ranges::adjacent_find(keys); twice != keys.end()) {
      fail(name, fmt::format("expected distinct keys, got {} twice", in_quotes(*twice)));
    }

    Tensor tensor;
    tensor.entry.name = name;
    std::string_view type_name;
    if (required(object, "dtype", name).get(type_name)) fail(name, "dtype: expected a string");
    const TypeInfo* type = find_type(type_name);
    if (type == nullptr) fail(name, "dtype: expected a type of the format, got " + in_quotes(type_name));
    tensor.entry.type_name = type->name;
    tensor.entry.dtype = type->dtype;

    const std::vector<uint64_t> dims = integers(object, "shape", name);
    const std::vector<uint64_t> offsets = integers(object, "data_offsets", name);
    tensor.entry.shape = shape(dims, name);
    if (offsets.size() != 2) {
      fail(name, fmt::format("data_offsets: expected 2 integers, got {}", offsets.size()));
    }
    tensor.begin = offsets[0];
    tensor.end = offsets[1];
    if (tensor.end < tensor.begin) {
      fail(name, fmt::format("data_offsets: expected end >= begin, got [{}, {}]", tensor.begin, tensor.end));
    }
    const uint64_t expected = size_bytes(dims, *type, name);
    if (tensor.end - tensor.begin != expected) {
      fail(name, fmt::format("data_offsets: expected {} bytes for {} {}, got {}", expected, type->name,
                             to_string(tensor.entry.shape), tensor.end - tensor.begin));
    }
    return tensor;
  }

 private:
  dom::element required(const dom::object& object, std::string_view key, std::string_view name) const {
    dom::element value;
    if (object.at_key(key).get(value)) fail(name, fmt::format("expected a member \"{}\", got none", key));
    return value;
  }

  std::vector<uint64_t> integers(const dom::object& object, std::string_view key,
                                 std::string_view name) const {
    const dom::element value = required(object, key, name);
    dom::array array;
    if (value.get(array)) fail(name, fmt::format("{}: expected an array, got {}", key, kind_of(value)));
    std::vector<uint64_t> result;
    for (const dom::element item : array) {
      if (result.size() == Shape::kMaxRank) {
        fail(name, fmt::format("{}: expected at most {} integers, got more", key, Shape::kMaxRank));
      }
      uint64_t number = 0;
      if (item.get(number)) {
        fail(name, fmt::format("{}: expected unsigned integers, got {}", key,
                               item.is_int64() ? "a negative one" : kind_of(item)));
      }
      result.push_back(number);
    }
    return result;
  }

  Shape shape(const std::vector<uint64_t>& dims, std::string_view name) const {
    std::vector<int64_t> result;
    for (const uint64_t dim : dims) {
      if (!std::in_range<int64_t>(dim)) {
        fail(name, fmt::format("shape: expected dimensions below 2^63, got {}", dim));
      }
      result.push_back(static_cast<int64_t>(dim));
    }
    return Shape(result);
  }

  uint64_t size_bytes(const std::vector<uint64_t>& dims, const TypeInfo& type, std::string_view name) const {
    std::optional<uint64_t> bits = 1;
    for (const uint64_t dim : dims) {
      if (bits) bits = checked_mul(*bits, dim);
    }
    if (bits) bits = checked_mul(*bits, uint64_t{type.bits});
    if (!bits) fail(name, "shape: expected a size in 64 bits, got an overflow");
    if (*bits % 8 != 0) fail(name, fmt::format("shape: expected whole bytes, got {} bits", *bits));
    return *bits / 8;
  }

  const std::string& path_;
};

}  // namespace

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path, FileAccess access) {
  std::shared_ptr<const MappedFile> file = MappedFile::open(path, access);
  SafetensorsFile result = parse(file->bytes(), path.string());
  result.file_ = std::move(file);
  return result;
}

SafetensorsFile SafetensorsFile::parse(std::span<const std::byte> bytes, std::string name) {
  SafetensorsFile result;
  result.path_ = std::move(name);
  const HeaderReader reader(result.path_);
  const auto [header, data] = reader.split(bytes);

  dom::parser parser;
  dom::element root;
  // The parser does not count empty containers; HeaderReader does.
  simdjson::error_code error = parser.allocate(header.size(), kSafetensorsMaxDepth + 1);
  if (!error) error = parser.parse(header.data(), header.size()).get(root);
  dom::object object;
  if (!error) error = root.get(object);
  if (error)
    reader.fail(fmt::format("header: expected JSON, got an error: {}", simdjson::error_message(error)));

  std::vector<Tensor> tensors;
  bool metadata_seen = false;
  for (const auto [key, value] : object) {
    if (key == kMetadataKey) {
      if (std::exchange(metadata_seen, true))
        reader.fail("header: expected distinct keys, got __metadata__ twice");
      reader.metadata(value, result.metadata_);
      continue;
    }
    if (tensors.size() == kSafetensorsMaxTensors) {
      reader.fail(fmt::format("header: expected at most {} tensors, got more", kSafetensorsMaxTensors));
    }
    tensors.push_back(reader.tensor(key, value));
  }
  std::ranges::sort(tensors, {}, [](const Tensor& t) { return std::pair(t.begin, t.end); });

  uint64_t position = 0;
  for (Tensor& tensor : tensors) {
    if (tensor.begin != position) {
      reader.fail(tensor.entry.name,
                  fmt::format("data_offsets: expected to begin at {}, got {}", position, tensor.begin));
    }
    if (tensor.end > data.size()) {
      reader.fail(tensor.entry.name,
                  fmt::format("data_offsets: expected to end within {} bytes of data, got {}", data.size(),
                              tensor.end));
    }
    tensor.entry.bytes = data.subspan(tensor.begin, tensor.end - tensor.begin);
    position = tensor.end;
    result.tensors_.push_back(std::move(tensor.entry));
  }
  if (position != data.size()) {
    reader.fail(fmt::format("data: expected {} bytes as the tensors need, got {}", position, data.size()));
  }

  result.by_name_.resize(result.tensors_.size());
  for (size_t i = 0; i < result.by_name_.size(); ++i) result.by_name_[i] = static_cast<uint32_t>(i);
  const auto name_of = [&](uint32_t i) -> std::string_view { return result.tensors_[i].name; };
  std::ranges::sort(result.by_name_, {}, name_of);
  if (const auto twice = std::ranges::adjacent_find(result.by_name_, {}, name_of);
      twice != result.by_name_.end()) {
    reader.fail(name_of(*twice), "expected distinct names, got it twice");
  }
  return result;
}

const SafetensorsEntry* SafetensorsFile::find(std::string_view name) const {
  const auto name_of = [&](uint32_t i) -> std::string_view { return tensors_[i].name; };
  const auto found = std::ranges::lower_bound(by_name_, name, {}, name_of);
  return found != by_name_.end() && name_of(*found) == name ? &tensors_[*found] : nullptr;
}

TensorSegment SafetensorsFile::segment(std::string_view name) const {
  const SafetensorsEntry* entry = find(name);
  if (entry == nullptr)
    throw FileError(fmt::format("{}: tensor {}: expected it, got none", path_, in_quotes(name)));
  return segment(*entry);
}

TensorSegment SafetensorsFile::segment(const SafetensorsEntry& entry) const {
  if (!entry.dtype) {
    throw FileError(fmt::format(
        "{}: tensor {}: expected a floating-point type of 16 to 64 bits, an integer or BOOL, got {}", path_,
        in_quotes(entry.name), entry.type_name));
  }
  return {*entry.dtype, entry.shape, entry.bytes};
}

std::string_view safetensors_name(DType dtype) {
  for (const TypeInfo& type : kTypes) {
    if (type.dtype == dtype) return type.name;
  }
  throw InvalidArgument(fmt::format("[safetensors] dtype: expected a type of memory, got {}", name(dtype)));
}

namespace {

/// `text` as a JSON string.
std::string json_string(std::string_view text) {
  std::string result = "\"";
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x20) {
      result += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      if (c == '"' || c == '\\') result += '\\';
      result += c;
    }
  }
  return result + '"';
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path, std::vector<SafetensorsSpec> specs,
                                     const std::map<std::string, std::string>& metadata)
    : file_(path) {
  const auto fail = [](const SafetensorsSpec& spec, std::string_view what) {
    throw InvalidArgument(fmt::format("[safetensors] tensor {}: {}", in_quotes(spec.name), what));
  };
  std::ranges::sort(specs, [](const SafetensorsSpec& a, const SafetensorsSpec& b) {
    const size_t a_bytes = refrain::size_bytes(a.dtype), b_bytes = refrain::size_bytes(b.dtype);
    return a_bytes != b_bytes ? a_bytes > b_bytes : a.name < b.name;
  });
  if (specs.size() > kSafetensorsMaxTensors) {
    throw InvalidArgument(fmt::format("[safetensors] tensors: expected at most {}, got {}",
                                      kSafetensorsMaxTensors, specs.size()));
  }

  std::string header = "{";
  if (!metadata.empty()) {
    header += json_string(kMetadataKey) + ":{";
    for (const auto& [key, value] : metadata) header += json_string(key) + ':' + json_string(value) + ',';
    header.back() = '}';
    header += ',';
  }
  uint64_t offset = 0;
  for (const SafetensorsSpec& spec : specs) {
    if (spec.name == kMetadataKey || spec.name.size() > kSafetensorsMaxNameBytes) {
      fail(spec, fmt::format("expected a name of at most {} bytes that is not __metadata__",
                             kSafetensorsMaxNameBytes));
    }
    const std::optional<int64_t> count = spec.shape.elements_checked();
    const std::optional<int64_t> size =
        count ? checked_mul(*count, static_cast<int64_t>(refrain::size_bytes(spec.dtype))) : std::nullopt;
    const std::optional<uint64_t> end =
        size ? checked_add(offset, static_cast<uint64_t>(*size)) : std::nullopt;
    if (!end || !std::in_range<int64_t>(*end)) fail(spec, "expected a size in 63 bits, got an overflow");
    header += fmt::format("{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}},",
                          json_string(spec.name), safetensors_name(spec.dtype),
                          fmt::join(spec.shape.dims(), ","), offset, *end);
    if (!slots_.emplace(spec.name, Slot{offset, *end}).second)
      fail(spec, "expected distinct names, got it twice");
    offset = *end;
  }
  if (header.back() == ',') header.pop_back();
  header += '}';
  header.append(align_up(kPrefixBytes + header.size(), kDataAlignment) - kPrefixBytes - header.size(), ' ');
  const uint64_t length = header.size();
  if (length > kSafetensorsMaxHeaderBytes) {
    throw InvalidArgument(fmt::format("[safetensors] header: expected at most {} bytes, got {}",
                                      kSafetensorsMaxHeaderBytes, length));
  }
  const uint64_t data = kPrefixBytes + length;
  for (auto& [name, slot] : slots_) {
    slot.next += data;
    slot.end += data;
  }
  end_ = data + offset;
  file_.write(0, std::as_bytes(std::span(&length, 1)));
  file_.write(kPrefixBytes, std::as_bytes(std::span(header)));
}

void SafetensorsWriter::append(std::string_view name, std::span<const std::byte> bytes) {
  const auto found = slots_.find(name);
  if (found == slots_.end()) {
    throw InvalidArgument(
        fmt::format("[safetensors] tensor {}: expected one that was announced", in_quotes(name)));
  }
  Slot& slot = found->second;
  if (bytes.size() > slot.end - slot.next) {
    throw InvalidArgument(fmt::format("[safetensors] tensor {}: expected at most {} more bytes, got {}",
                                      in_quotes(name), slot.end - slot.next, bytes.size()));
  }
  file_.write(slot.next, bytes);
  slot.next += bytes.size();
}

void SafetensorsWriter::commit() {
  for (const auto& [name, slot] : slots_) {
    if (slot.next != slot.end) {
      throw InvalidArgument(fmt::format("[safetensors] tensor {}: expected {} more bytes, got commit",
                                        in_quotes(name), slot.end - slot.next));
    }
  }
  file_.commit();
}

}  // namespace refrain::format

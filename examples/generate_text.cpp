// Text from a model folder, in C++: generate_text MODEL PROMPT
#include <refrain/refrain.h>

#include <cstdio>

using namespace refrain;

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: generate_text MODEL PROMPT\n");
    return 1;
  }
  try {
    const model::Model model = model::Model::load(Device::open("auto"), argv[1]);
    const text::Tokenizer tokenizer = text::Tokenizer::load_folder(argv[1]);
    std::vector<uint32_t> prompt = tokenizer.encode(argv[2]);
    if (const auto bos = tokenizer.bos()) prompt.insert(prompt.begin(), *bos);

    model::ModelRunner runner(model, {});
    text::StreamDecoder decoder(tokenizer);
    model::GenerateOptions options;
    options.sampling = {.temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .seed = 1};
    options.stop_ids = model.config().eos_ids;
    options.on_token = [&](uint32_t id) {
      std::fputs(decoder.push(id).c_str(), stdout);
      std::fflush(stdout);
      return true;
    };
    const model::GenerateResult result = model::generate(runner, prompt, options);
    std::printf("%s\n", decoder.finish().c_str());
    std::fprintf(stderr, "%u tokens in %.3f s\n", result.generated_tokens, result.prompt_s + result.decode_s);
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

// The subcommands of the program `refrain`: each registers itself with its options and runs in its callback.
#pragma once

#include <CLI/CLI.hpp>

namespace refrain::cli {

void add_generate(CLI::App& app);
void add_info(CLI::App& app);
void add_tokenize(CLI::App& app);
void add_logits(CLI::App& app);
void add_quantize(CLI::App& app);

}  // namespace refrain::cli

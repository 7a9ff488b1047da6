// The program `refrain`: reads the command line, runs one subcommand and turns what it throws into one line
// on stderr and exit code 1.
#include <exception>
#include <sstream>
#include <string>

#include "cli/commands.h"
#include "cli/streams.h"

#ifndef REFRAIN_VERSION
#define REFRAIN_VERSION "0.0.0"
#endif

namespace {

int report(const std::string& what) {
  std::string line = what;
  for (char& c : line) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  refrain::cli::say("refrain: error: {}\n", line);
  return 1;
}

bool is_subcommand(const CLI::App& app, const std::string& name) {
  return !app.get_subcommands([&](const CLI::App* sub) { return sub->check_name(name); }).empty();
}

}  // namespace

int main(int argc, char** argv) {
  refrain::cli::open_missing_streams();
  try {
    CLI::App app{"Runs language models by recording their forward pass once and replaying it.", "refrain"};
    app.set_version_flag("--version", std::string("refrain " REFRAIN_VERSION));
    app.require_subcommand(1);
    refrain::cli::add_generate(app);
    refrain::cli::add_info(app);
    refrain::cli::add_tokenize(app);
    refrain::cli::add_logits(app);
    refrain::cli::add_quantize(app);
    if (const std::string first = argc > 1 ? argv[1] : "-";
        first.front() != '-' && !is_subcommand(app, first)) {
      return report("expected a subcommand (refrain --help lists them), got \"" + first + "\"");
    }
    try {
      app.parse(argc, argv);
    } catch (const CLI::Success& asked) {  // --help, --version
      std::ostringstream answer;
      const int status = app.exit(asked, answer, answer);
      refrain::cli::write_stdout(answer.str());
      return status;
    } catch (const CLI::RuntimeError& status) {  // a command that has ended with an exit code of its own
      return status.get_exit_code();
    } catch (const CLI::ParseError& error) {
      return report(error.what());
    }
    return 0;
  } catch (const std::exception& error) {
    return report(error.what());
  } catch (...) {
    return report("unknown failure");
  }
}

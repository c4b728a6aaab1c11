#pragma once

#include <string>
#include <vector>

// CLI11 stays in the sources.
namespace CLI {
class App;
}

namespace regard::commands {

/// Each command adds itself to the program: its options, its help, and what it does when chosen. What it does sets
/// `status`; regard::Error and CLI::Error thrown by it become one line on stderr and status 2.
void add_list(CLI::App& program, int& status);
void add_check(CLI::App& program, int& status);
void add_arena(CLI::App& program, int& status);
void add_explain(CLI::App& program, int& status);
void add_version(CLI::App& program, int& status);

/// Writes `text` to FILE, or to standard output for "-". A regular file is replaced whole; a device or a pipe is
/// written to. `command` is the name that errors carry.
void write_output(const std::string& command, const std::string& file, const std::string& text);

/// Refuses a FILE that write_output could not write, so that nobody learns it after a long run. "" is no file.
void require_writable(const std::string& command, const std::string& file);

/// The folder that keeps reports of `regard check` for `regard list`: $XDG_CACHE_HOME/regard/check, or under ~/.cache.
std::string reports_folder();

}  // namespace regard::commands

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "regard/base/error.h"
#include "regard/base/file.h"
#include "regard/cli/command.h"

namespace regard::commands {

void write_output(const std::string& command, const std::string& file, const std::string& text) {
  namespace fs = std::filesystem;
  if (file == "-") return fmt::print("{}\n", text);
  std::error_code error;
  const fs::file_status status = fs::status(file, error);
  if (!fs::exists(status) || fs::is_regular_file(status) || fs::is_directory(status))
    return write_file_atomically(file, text + "\n", command);
  std::ofstream stream(file);
  stream << text << std::endl;
  if (!stream) fail(command, "a file that can be written", "'" + file + "'");
}

std::string reports_folder() {
  namespace fs = std::filesystem;
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache && *cache)
    return (fs::path(cache) / "regard" / "check").string();
  const char* home = std::getenv("HOME");
  return (fs::path(home && *home ? home : ".") / ".cache" / "regard" / "check").string();
}

}  // namespace regard::commands

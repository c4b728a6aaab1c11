#include <fmt/format.h>

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
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

void require_writable(const std::string& command, const std::string& file) {
  namespace fs = std::filesystem;
  if (file.empty() || file == "-") return;
  std::error_code error;
  if (fs::is_directory(file, error)) fail(command, "--json to name a file", "the folder '" + file + "'");
  if (fs::exists(file, error) && !fs::is_regular_file(file, error)) return;  // a device or a pipe
  const std::string folder = fs::path(file).parent_path().empty() ? "." : fs::path(file).parent_path().string();
  if (!fs::is_directory(folder, error))
    fail(command, "--json FILE in a folder that exists", "no folder '" + folder + "' for '" + file + "'");
  if (::access(folder.c_str(), W_OK) != 0)
    fail(command, "--json FILE in a folder that can be written", "'" + folder + "': " + std::strerror(errno));
}

std::string reports_folder() {
  namespace fs = std::filesystem;
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache && *cache)
    return (fs::path(cache) / "regard" / "check").string();
  const char* home = std::getenv("HOME");
  return (fs::path(home && *home ? home : ".") / ".cache" / "regard" / "check").string();
}

}  // namespace regard::commands

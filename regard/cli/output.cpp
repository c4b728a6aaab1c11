#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>

#include "regard/arena/run_folder.h"
#include "regard/cli/command.h"

namespace regard::commands {

void write_output(const std::string& file, const std::string& text) {
  if (file == "-")
    fmt::print("{}\n", text);
  else
    arena::write_atomically(file, text + "\n");
}

std::string reports_folder() {
  namespace fs = std::filesystem;
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache && *cache)
    return (fs::path(cache) / "regard" / "check").string();
  const char* home = std::getenv("HOME");
  return (fs::path(home && *home ? home : ".") / ".cache" / "regard" / "check").string();
}

std::string columns(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths(rows.front().size());
  for (const auto& row : rows)
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
  std::string text;
  const auto line = [&](const std::vector<std::string>& row) {
    std::string cells;
    for (size_t c = 0; c < row.size(); ++c) cells += fmt::format("{:<{}}  ", row[c], widths[c]);
    cells.erase(cells.find_last_not_of(' ') + 1);
    text += cells + "\n";
  };
  line(rows.front());
  std::vector<std::string> rule;
  for (const size_t width : widths) rule.emplace_back(width, '-');
  line(rule);
  for (size_t r = 1; r < rows.size(); ++r) line(rows[r]);
  return text;
}

}  // namespace regard::commands

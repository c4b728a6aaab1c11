#pragma once

#include <optional>
#include <string>

#include "regard/arena/settings.h"

namespace regard::arena {

/// The folder of one run: settings.json and one file a finished job, each written whole beside and then renamed, so
/// that an interruption at any moment leaves only complete files.
class RunFolder {
 public:
  /// A new folder at `path` (created; throws when it holds a run already), with the settings written.
  static RunFolder create(const std::string& path, const Settings& settings);
  /// The folder of a run begun before; throws when `path` holds none.
  static RunFolder open(const std::string& path);
  /// runs/digits-YYYYMMDD-HHMMSS under the current folder, with a number behind it when taken.
  static std::string fresh_path();
  /// The newest of those; throws when there is none.
  static std::string latest_path();

  const std::string& path() const { return path_; }
  Settings settings() const;
  void write(const Settings& settings, const Finished& finished) const;
  /// The outcome of this job under the same training settings; nothing when it has not finished. Throws when a file is
  /// there and was made with other training settings.
  std::optional<Outcome> read(const Settings& settings, const Job& job) const;

 private:
  explicit RunFolder(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

/// JSON of all settings, and back (unknown keys are refused).
std::string to_json(const Settings& settings);
Settings settings_from_json(const std::string& text);

}  // namespace regard::arena

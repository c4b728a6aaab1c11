#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace regard {

/// Maps a whole file for reading; the pointer unmaps it. Null data for an empty file.
/// `function` names the caller in errors.
std::pair<std::shared_ptr<const void>, size_t> map_file(const std::string& path, const std::string& function);

/// All that `path` holds; a pipe or a device is read to its end.
std::string read_file(const std::string& path, const std::string& function);

/// Replaces `path` by the pieces, one after another, whole or not at all: a reader sees the old file or the new one.
/// What is there and is no regular file (a device, a pipe, a folder) is refused: it must not be renamed over.
void write_file_atomically(const std::string& path, const std::vector<std::pair<const void*, size_t>>& pieces,
                           const std::string& function);
void write_file_atomically(const std::string& path, const std::string& text, const std::string& function);

}  // namespace regard

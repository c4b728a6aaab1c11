#include "regard/arena/digits_data.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "regard/base/error.h"

namespace regard::arena {
namespace {

constexpr int64_t side = 8, pixels = side * side, classes = 10;

/// SplitMix64: the order of a class's images, the same on every machine.
uint64_t hash(uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

[[noreturn]] void malformed(const std::string& path, int64_t line, const std::string& found) {
  fail("load_digits", "65 integers a line (64 pixels in [0, 16], a digit) in " + path,
       found + " in line " + std::to_string(line));
}

/// One line into 64 pixels and a label.
void read_line(const std::string& path, int64_t number, const std::string& line, std::vector<float>& images,
               std::vector<int64_t>& labels) {
  std::istringstream cells(line);
  std::string cell;
  int64_t count = 0;
  while (std::getline(cells, cell, ',')) {
    char* end = nullptr;
    const long value = std::strtol(cell.c_str(), &end, 10);
    if (end == cell.c_str() || value < 0 || value > (count < pixels ? 16 : classes - 1))
      malformed(path, number, "'" + cell + "'");
    if (count < pixels)
      images.push_back(static_cast<float>(value));
    else
      labels.push_back(value);
    ++count;
  }
  if (count != pixels + 1) malformed(path, number, std::to_string(count) + " cells");
}

/// Every fourth image of a class, in hashed order, to the test; every fifth of the rest to the validation part.
void split(const std::vector<int64_t>& labels, Digits& digits) {
  for (int64_t digit = 0; digit < classes; ++digit) {
    std::vector<int64_t> members;
    for (size_t i = 0; i < labels.size(); ++i)
      if (labels[i] == digit) members.push_back(static_cast<int64_t>(i));
    std::sort(members.begin(), members.end(),
              [](int64_t a, int64_t b) { return hash(static_cast<uint64_t>(a)) < hash(static_cast<uint64_t>(b)); });
    int64_t kept = 0;
    for (size_t i = 0; i < members.size(); ++i) {
      if (i % 4 == 3)
        digits.test.push_back(members[i]);
      else if (kept++ % 5 == 4)
        digits.validation.push_back(members[i]);
      else
        digits.train.push_back(members[i]);
    }
  }
  for (auto* part : {&digits.train, &digits.validation, &digits.test}) std::sort(part->begin(), part->end());
}

}  // namespace

std::string data_folder(const std::string& given) {
  if (!given.empty()) return given;
  if (const char* variable = std::getenv("REGARD_DATA"); variable && *variable) return variable;
  Dl_info info;
  if (dladdr(reinterpret_cast<const void*>(&data_folder), &info) && info.dli_fname) {
    std::error_code error;
    const auto library = std::filesystem::canonical(info.dli_fname, error);
    if (!error) return (library.parent_path().parent_path() / "share" / "regard" / "data").string();
  }
  return "data";
}

Digits load_digits(const std::string& folder) {
  const std::string path = (std::filesystem::path(data_folder(folder)) / "digits.csv").string();
  std::ifstream file(path);
  if (!file) fail("load_digits", "the file digits.csv in the folder of --data or REGARD_DATA", "none at " + path);
  std::vector<float> images;
  std::vector<int64_t> labels;
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number)
    if (!line.empty()) read_line(path, number, line, images, labels);
  const auto count = static_cast<int64_t>(labels.size());
  if (count == 0) malformed(path, 1, "no image");

  Digits digits;
  // Mean 4.9 and standard deviation 6.0 of all pixels.
  digits.images = at::tensor(images).sub_(4.9).div_(6.0).view({count, 1, side, side});
  digits.labels = at::tensor(labels);
  split(labels, digits);
  return digits;
}

}  // namespace regard::arena

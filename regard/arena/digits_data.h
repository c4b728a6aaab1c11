#pragma once

#include <ATen/ATen.h>

#include <string>
#include <vector>

namespace regard::arena {

/// The UCI optical digits: 1797 images of 8 x 8 pixels, and the fixed split that data/README.md describes.
struct Digits {
  at::Tensor images;  ///< (1797, 1, 8, 8) float32, about zero mean and unit variance
  at::Tensor labels;  ///< (1797) int64
  std::vector<int64_t> train, validation, test;

  static constexpr const char* split_name = "digits-quarter";
};

/// Reads digits.csv in `folder`; empty: REGARD_DATA, or share/regard/data beside the library's folder.
/// Throws regard::Error when the file is missing or malformed.
Digits load_digits(const std::string& folder);

/// The folder that holds the data of this installation (as load_digits finds it).
std::string data_folder(const std::string& given);

}  // namespace regard::arena

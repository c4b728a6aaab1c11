#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace regard::ops {

enum class TapKind : uint8_t {
  entropy,
  effective_keys,
  max,
  mass,
  marked_mass,
  own_mass,
  mean_distance,
  sum_of_squares,
  column_sums,
  column_square_sums,
  top_k,
  top_k_index,
  rows,
  blocks,
  offsets,
};

/// The name of a reduction taken apart.
struct TapName {
  std::string text;
  TapKind kind = TapKind::entropy;
  bool given = false;                               ///< whether something follows the name and a colon
  std::vector<std::pair<int64_t, int64_t>> ranges;  ///< first and last of each; both negative: counted from the end
  int64_t first = 0, second = 0;                    ///< K of top_k, P and Q of blocks, R of offsets
};

/// Throws regard::Error for a name that is none.
TapName parse_tap(const std::string& text);
std::vector<std::string> tap_forms();  ///< "entropy", "top_k:K", ...

}  // namespace regard::ops

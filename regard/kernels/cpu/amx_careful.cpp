#include "regard/kernels/cpu/amx_careful.h"

#include <cstring>

namespace regard::kernels {

void careful_output(const CarefulOutput& c) {
  for (int64_t j = c.first; j < c.keys; ++j) {
    for (int64_t l = 0; l < kTile; ++l) {
      if (j >= c.limit[l]) continue;
      uint16_t bits;
      std::memcpy(&bits, c.weights + j / 2 * 64 + l * 4 + j % 2 * 2, sizeof bits);
      const float weight = to_float(bits);
      for (int64_t d = 0; d < c.width; ++d) c.output[d * kTile + l] += weight * to_float(c.v[j * c.row + d * c.column]);
    }
  }
}

}  // namespace regard::kernels

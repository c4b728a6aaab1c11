#pragma once

#include <cstdint>

#include "regard/kernels/cpu/amx_call.h"

/// Products over the seen pairs alone. A tile product multiplies hidden pairs by 0, and 0 times NaN or infinity is
/// NaN: where a block holds hidden pairs and such elements, these plain loops take its place.
namespace regard::kernels {

/// output[d][l] += sum_j weight[j][l] v[j][d] over keys j in [first, limit[l]), the weights being B tiles of one panel.
struct CarefulOutput {
  float* output = nullptr;  ///< [Dv][16 queries]
  const char* weights = nullptr;
  const int32_t* limit = nullptr;
  const uint16_t* v = nullptr;
  int64_t row = 0, column = 0, width = 0;
  int64_t first = 0, keys = 0;
};
void careful_output(const CarefulOutput& c);

/// The chain rule and its products for some queries and a block of keys, into the sums of a AmxBackwardTask.
struct CarefulGradient {
  const AmxCall* call = nullptr;
  const AmxGradient* gradient = nullptr;
  const AmxReach* reach = nullptr;
  int64_t batch = 0, head = 0, key_head = 0;
  int64_t query = 0, queries = 0, key = 0, keys = 0;
  const float *lse = nullptr, *delta = nullptr;  ///< of the queries; lse base 2
  float *dk = nullptr, *dv = nullptr;            ///< [16 keys][width / 16] tiles
  float* dq = nullptr;                           ///< [panel][Dh][16 queries], or null
};
void careful_gradient(const CarefulGradient& c);

}  // namespace regard::kernels

#pragma once

#include <ATen/ATen.h>

namespace regard {

/// Press et al.'s slopes of ALiBi: 2^(-8 (h + 1) / H) when H is a power of two; otherwise those of the power of two
/// below, then every second one of the power above. (H) float32.
at::Tensor alibi_slopes(int64_t heads, const at::TensorOptions& options);

}  // namespace regard

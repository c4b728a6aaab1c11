#pragma once

#include "regard/kernels/attention.h"

/// Attention on tiles of queries and keys: every spec, every size.
namespace regard::kernels {

template <class T>
void tile_forward(const Attention<T>& call);

template <class T>
void tile_backward(const Attention<T>& call, const AttentionGradient<T>& gradient);

}  // namespace regard::kernels

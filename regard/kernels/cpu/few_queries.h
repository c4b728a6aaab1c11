#pragma once

#include "regard/kernels/attention.h"

/// Few queries a key head (decode, pooling): bound by reading K and V once.
namespace regard::kernels {

/// Whether this kernel is the faster one for the call: at most a few rows (group's heads x M) read each key head.
template <class T, class S>
bool few_queries_take(const Attention<T, S>& call);

/// See attention_forward.
template <class T, class S>
void few_queries_forward(const Attention<T, S>& call);

/// Whether the backward of this call, with these gradients wanted, runs here.
template <class T, class S>
bool few_queries_take(const Attention<T, S>& call, const AttentionGradient<T, S>& gradient);

/// See attention_backward.
template <class T, class S>
void few_queries_backward(const Attention<T, S>& call, const AttentionGradient<T, S>& gradient);

}  // namespace regard::kernels

#pragma once

#include <string>
#include <vector>

#include "regard/kernels/attention.h"

namespace regard::kernels {

/// Throws where sizes, heads, sinks or captures of the call contradict its spec.
template <class T>
void check_call(const Attention<T>& call);

/// Why a kernel that has softmax alone, with its denominator differentiated, cannot run this spec, or "".
std::string softmax_refusal(const AttentionSpec& resolved);

/// Throws unless the features and the head that a dot names exist. `columns`, `heads`: of its operand.
void check_dot(const Node& dot, int64_t columns, int64_t heads, int64_t query_heads);

template <class T>
const Operand<T>& find_operand(const std::vector<Operand<T>>& operands, const std::string& name);

}  // namespace regard::kernels

#pragma once

#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "regard/ops/attention.h"
#include "regard/ops/edited.h"

/// Reductions of the attention map P (B, H, M, N), P_ij = normalizer(score_i.)_j weight_ij, without P: O(M + N) memory
/// beside their own size, differentiable to any order in q, k, captures, operands and sinks.
///
///     entropy             (B, H, M)      -sum_j P_ij log P_ij over positive weights, in nats; 0 for a row without keys
///     effective_keys      (B, H, M)      exp(entropy), the effective number of keys; 0 for a row without keys
///     max                 (B, H, M)      max_j P_ij
///     mass                (B, H, M)      sum_j P_ij; below 1 with sinks, dropout or a weight
///     mass:KEYS           (B, H, M)      the same over chosen key positions ("mass:0": on the first token)
///     marked_mass         (B, H, M)      sum_j P_ij marked_j, marked (N), (B, N), (B, H, N) or (B, H, M, N)
///     own_mass            (B, H, M)      P_ij of the key at the query's own position
///     mean_distance       (B, H, M)      sum_j P_ij |query() - key()|
///     sum_of_squares      (B, H, M)      sum_j P_ij^2
///     column_sums         (B, H, N)      sum_i P_ij, what each key receives
///     column_square_sums  (B, H, N)      sum_i P_ij^2
///     top_k:K             (B, H, M, K)   the K largest weights of each row, falling; 0 where there are fewer keys
///     top_k_index:K       (B, H, M, K)   their key indices, int64; -1 where the weight is 0
///     rows, rows:ROWS     (B, H, R, N)   all rows, or chosen ones ("rows:0,5", "rows:8-15", "rows:-1" the last)
///     blocks:PxQ          (B, H, ceil(M / P), ceil(N / Q))  means over blocks of P rows and Q columns
///     offsets:R           (B, H, 2R + 1)  sum of P_ij with query() - key() = -R .. R; what lies beyond is in the ends
///
/// A list is of numbers and ranges ("0,4,8-15"). Rows and columns are indices of this call, keys of "mass" are
/// positions.
namespace regard {

struct TapArguments {
  at::Tensor marked;                   ///< of "marked_mass": boolean, integer or real; axes of size 1 broadcast
  std::vector<ops::WeightEdit> edits;  ///< what is measured are the edited weights
};

/// Every named reduction, in the order asked; `arguments` hold captures and operands in the order of the spec. Those
/// that are sums over keys of weight times a function of the pair come from one pass of `attention` with pair outputs,
/// column sums from the pass behind attention_transposed, the others from one pass in stripes.
std::vector<at::Tensor> attention_taps(const at::Tensor& q, const at::Tensor& k, const AttentionSpec& spec,
                                       const AttentionArguments& arguments, const std::vector<std::string>& taps,
                                       const TapArguments& more = {});

/// Throws unless `name` is that of a reduction; `names` are they, as an error shows them.
void check_tap(const std::string& name);
std::vector<std::string> tap_names();

}  // namespace regard

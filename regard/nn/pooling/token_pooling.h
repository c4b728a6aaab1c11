#pragma once

#include "regard/nn/mechanism.h"

namespace regard {

/// Token Pooling: K representatives of the tokens, chosen to make the weighted error of replacing each token by its
/// nearest one small. Later layers then run on K tokens.
///
///     minimize  sum_n w_n min_k d(x_n, c_k)^2,        y = c_1, ..., c_K
///     assign    a_n = argmin_k d(x_n, c_k)            the first on ties
///     kmeans    c_k = sum_{a_n = k} w_n x_n / sum_{a_n = k} w_n
///     kmedoids  c_k = the member i of cluster k of least sum_{a_j = k} w_j d(x_i, x_j)
///
/// both steps `iterations` times, then the assignment once more; an empty cluster keeps its center. x (B, P + N, D),
/// y (B, P + K, D): the P prefix tokens (class, registers) are passed by, in front. K is `count`, or keep_rate N
/// rounded down, at least 1. w_n is what token n received in the attention before: `significance` (B, P + N) as
/// softmax-attention publishes it, or the input `weight`. Clusters start at the K tokens of largest w, cluster 0 the
/// heaviest; unweighted (w = 1) at the token farthest from the mean, then always the one farthest from those chosen.
/// Deterministic; distances from Gram matrices in float32 at least, of tokens from which the mean is taken.
///
/// Gradients go straight through: assignment, indices and weights are constants (`weight_gradient`: not the weights of
/// kmeans' means). `lengths` (B): padding is neither candidate nor member; a row keeps keep_rate of its own tokens,
/// what follows in y is 0, and the output `lengths` says how many there are.
///
/// Variant thirdparty-kmedoids is the public implementation's medoid step, which is not the paper's: the cost of
/// candidate i is w_i sum_j d(x_i, x_j) over all tokens; an empty cluster goes to token 0.
/// Outputs: center_index (B, K) of medoids, assignment (B, N), sizes (B, K), lengths (B); indices count behind the
/// prefix. Errors: count above the number of tokens, neither weight nor significance, an unknown variant or distance,
/// no tokens.
///
/// Paper: Marin et al., 2021, Token Pooling in Vision Transformers (arXiv 2110.03860).
struct TokenPooling {
  struct Config {
    int64_t width = 0;       ///< D
    int64_t count = 0;       ///< K; 0: from keep_rate
    double keep_rate = 0.5;  ///< in (0, 1]
    int64_t iterations = 5;
    std::string variant = "kmeans";      ///< kmeans | kmedoids | thirdparty-kmedoids
    std::string distance = "euclidean";  ///< of kmedoids: euclidean | squared
    bool weighted = true;
    bool weight_gradient = false;
    void fields(Fields& f);
    void validate() const;
  };
  static Info info();
  static void declare(const Config& config, Declaration& weights);
  static at::Tensor forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context);
};

}  // namespace regard

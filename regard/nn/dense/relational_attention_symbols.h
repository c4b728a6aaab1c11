#pragma once

#include <functional>

#include "regard/nn/mechanism.h"

namespace regard {

/// Where the symbols of relational attention come from: what is said of a token besides its relations.
///
///     symbolic     s_i = sum_t softmax_t(scale <Wq x_i, template_t>) library_t, head by head
///     positional   s_i = library[position of i]
///     relative     s_ij = table[clip(j - i, -L, L) + L], one for each pair
///     relational   symbolic attention whose query is made of i's relations to its neighbors i - 1 .. i - delta
///                  (or around i); a neighbor outside the sequence is the nearest token inside
struct SymbolConfig {
  std::string symbols = "symbolic";    ///< symbolic | positional | relative | relational | input
  int64_t symbol_heads = 1;            ///< of symbolic and relational
  int64_t symbol_count = 16;           ///< S: library entries
  std::optional<double> symbol_scale;  ///< default 1 / sqrt(D / symbol_heads)
  bool trainable_symbols = true;
  int64_t max_length = 512;   ///< positional: library entries
  int64_t max_distance = 16;  ///< relative: L
  int64_t neighbors = 2;      ///< relational: delta
  int64_t neighbor_heads = 1;
  bool causal_neighbors = true;  ///< only earlier tokens
  bool include_self = false;
  bool normalize_relations = true;  ///< softmax over the neighborhood of neighbor_scale * relation; else as they are
  std::optional<double> neighbor_scale;  ///< default 1 / sqrt(D / neighbor_heads)

  void fields(Fields& f);
  void validate(const char* id, int64_t width) const;
  int64_t table_rows() const { return 2 * max_distance + 1; }
  std::vector<int64_t> offsets() const;  ///< of the neighbors, in the order of their features
};

/// The weights under `prefix`: q_proj, template_features (S, D), symbol_library (S or max_length, D);
/// rel_pos_enc.rel_pos_embeddings (2 L + 1, D); q_proj, k_proj, model_dim_proj, symbolic_attention.*.
void declare_symbols(const SymbolConfig& config, int64_t width, const std::string& prefix, Declaration& weights);
/// What `retrieve_symbols` remembers in a decode: the last delta neighbor keys.
std::vector<CacheStream> symbol_caches(const SymbolConfig& config, int64_t width);
/// (B, N, D) from x (B, N, D), padding zeroed by the caller; not for `relative`.
at::Tensor retrieve_symbols(const SymbolConfig& config, const Weights& weights, const at::Tensor& x, Context& context,
                            const char* id);

/// Symbols alone, to be retrieved once for a whole model and given to its layers as their input `symbols`.
///
///     y_i = s_i,  one of symbolic, positional, relational as above
///
/// x (B, N, D) -> y (B, N, D), any floating dtype; a padded token gives 0. Weights as above without a prefix.
/// Errors: symbols of pairs or given ones, heads that do not divide the width, neighbors on both sides with causal.
///
/// Paper: Altabaa & Lafferty, 2024, Disentangling and Integrating Relational and Sensory Information in Transformer
/// Architectures (arXiv 2405.16727).
struct SymbolRetrieval {
  struct Config : SymbolConfig {
    int64_t width = 0;    ///< D
    bool causal = false;  ///< token i sees tokens j <= i
    void fields(Fields& f);
    void validate() const;
  };
  static Info info();
  static void declare(const Config& config, Declaration& weights);
  static std::vector<CacheStream> caches(const Config& config);
  static at::Tensor forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context);
};

}  // namespace regard

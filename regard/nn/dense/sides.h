#pragma once

#include "regard/nn/mechanism.h"

namespace regard {

/// The two sides of an attention: the tokens that ask, the tokens that answer, and which of them exist.
///
/// Read from the inputs that the dense family shares, `side_ports()`: memory, lengths, memory_lengths, key_hidden,
/// hidden. What does not exist is zeroed before it is projected: its key gets no weight, but NaN in it would still
/// reach the gradients of the projections, as 0 * NaN.
struct Sides {
  at::Tensor x;            ///< (B, M, D)
  at::Tensor source;       ///< (B, N, Dm): memory, or x
  at::Tensor padded;       ///< (B, M) true at padding of x; undefined without lengths
  at::Tensor lengths;      ///< (B), of x; undefined when absent
  at::Tensor key_lengths;  ///< (B), of the source
  at::Tensor key_hidden;   ///< (B, N), true = NOT attended
  bool cross = false;      ///< the source is the memory
};
std::vector<Port> side_ports();
Sides sides_of(const char* id, const at::Tensor& x, int64_t memory_width, const Context& context);

/// Whether query i sees only keys j <= i, and where i is counted from when there is a memory: so that the last query
/// lies on the last key (each row's own last, padding not counted), or the first on the first.
struct Order {
  bool causal = false;
  bool bottom_right = true;
};
void require_alignment(const char* id, const std::string& alignment);  ///< "bottom_right" or "top_left"

/// Adds to spec.keep, and to the captures and the offset of the arguments, which pairs of q (B, H, M, Dh) and
/// k (B, Hk, N, Dh), all keys so far, exist.
void add_visibility(const char* id, const Sides& sides, const Order& order, const at::Tensor& q, const at::Tensor& k,
                    const Context& context, AttentionSpec& spec, AttentionArguments& arguments);

/// Positions for a rotary embedding, (L) or (B, L): the inputs positions and memory_positions where given; else those
/// of the tokens, the memory's counted from 0, and x's beside it as `order` says.
at::Tensor query_positions(const char* id, const Sides& sides, const Order& order, const Context& context);
at::Tensor key_positions(const char* id, const Sides& sides, const Context& context);

/// Dropout of the weights, in training.
void add_dropout(double p, Context& context, AttentionSpec& spec, AttentionArguments& arguments);

/// tokens (B, L, D) with zeros where `where` (B, L) holds; tokens when it is undefined.
at::Tensor zeroed(const at::Tensor& tokens, const at::Tensor& where);

}  // namespace regard

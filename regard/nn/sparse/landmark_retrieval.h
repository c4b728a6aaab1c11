#pragma once

#include "regard/nn/sparse/landmark.h"

namespace regard {

/// t (.., L, Dh) with the channels (2i, 2i + 1) of each token turned by its position times frequencies[i]; positions
/// broadcast to (.., L) and have that rank, or (L). Undefined frequencies: t itself.
at::Tensor landmark_turn(const at::Tensor& t, const at::Tensor& positions, const at::Tensor& frequencies);

/// One chunk of queries beside what earlier calls left, for attention to fetched blocks.
struct LandmarkChunk {
  at::Tensor q;            ///< (B, H, M, Dh), before its rotation
  at::Tensor k, v;         ///< (B, H, P + M, Dh), k before its rotation; landmarks regular from the first token
  int64_t past = 0;        ///< P
  at::Tensor frequencies;  ///< rotary, undefined: none
  double scale = 1;
};

/// o (B, H, M, Dh): each query sees the chosen blocks, the unfinished block and the chunk up to itself.
at::Tensor landmark_retrieval(const Landmark::Config& config, const LandmarkChunk& chunk);

}  // namespace regard

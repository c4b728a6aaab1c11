#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace regard {

/// How one call runs. A mechanism reads it and never branches on where it runs.
struct Context {
  bool training = false;
  /// Rows and columns (any rank) of the patch tokens; empty when the tokens have no grid. `prefix` tokens in front of
  /// them (class, registers) have no place in it: x is (B, prefix + product(grid), D).
  std::vector<c10::SymInt> grid;
  int64_t prefix = 0;
  std::string path = "auto";        ///< the path asked of every attention inside: auto | fused | stripe | composite

  /// Named tensors beside x that this call brings ("memory", "lengths", "bias", ...); an undefined tensor when absent.
  /// Only names that the mechanism's Info lists arrive here.
  at::Tensor input(const std::string& name) const;
  std::map<std::string, at::Tensor> inputs;

  /// Outputs beside the main one that the caller asked for ("attn"): compute one only when it is wanted.
  bool wants(const std::string& name) const;
  void output(const std::string& name, at::Tensor value);
  std::vector<std::string> wanted;
  std::map<std::string, at::Tensor> outputs;

  /// An int64 scalar seed for the next random stream `name`, replayable from `seed` (drawn from torch's generator when
  /// the caller gave none). The n-th call gives the n-th stream.
  at::Tensor stream(const std::string& name);
  at::Tensor seed;
  int64_t streams = 0;              ///< handed out so far
  /// Of a mechanism inside a host: its seed is the stream `name` of the host's context, drawn only when something is
  /// random. A call without random numbers leaves torch's generator alone and works under vmap.
  Context* host = nullptr;
  std::string name;
};

}  // namespace regard

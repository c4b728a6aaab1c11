#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "regard/nn/cache_stream.h"
#include "regard/nn/edit.h"
#include "regard/ops/attention.h"

namespace regard {

class Executor;
struct LinearArguments;
struct LinearOutput;

/// How one call runs: what it brings beside x, where its tokens lie, what it remembers and what is looked at. A
/// mechanism asks the context for whatever spans the sequence and never branches on where it runs:
///
///     k = context.append("k", k);                                  // all keys so far; k itself without a cache
///     q = rotate(q, context.positions(x));                         // global positions of x's tokens
///     AttentionOutput out = context.attend(q, k, v, spec, arguments);  // local, split, sharded; packed, cached,
///     tapped
class Context {
 public:
  // ---- the call, set by whoever makes it ---------------------------------------------------------------------------
  bool training = false;
  /// Rows and columns (any rank) of the patch tokens; empty when the tokens have no grid. `prefix` tokens in front of
  /// them (class, registers) have no place in it: x is (B, prefix + product(grid), D).
  std::vector<c10::SymInt> grid;
  int64_t prefix = 0;
  std::string path = "auto";           ///< the path asked of every attention inside: auto | fused | stripe | composite
  std::shared_ptr<Executor> executor;  ///< null: local
  std::vector<Edit> edits;             ///< of the attentions inside, in this order

  // ---- inputs and outputs ------------------------------------------------------------------------------------------
  /// Named tensors beside x that this call brings ("memory", "lengths", "bias", ...); an undefined tensor when absent.
  /// Only names that the mechanism's Info lists arrive here, and those that every mechanism may get: "cu_seqlens",
  /// "cache.STREAM", "tap.marked".
  at::Tensor input(const std::string& name) const;
  std::map<std::string, at::Tensor> inputs;

  /// Outputs beside the main one that the caller asked for ("attn"): compute one only when it is wanted. Published
  /// tensors, losses ("loss.NAME"), caches ("cache.STREAM") and taps ("tap.NAME") are outputs too.
  bool wants(const std::string& name) const;
  void output(const std::string& name, at::Tensor value);
  std::vector<std::string> wanted;
  std::set<std::string> optional;  ///< those of `wanted` that a configuration may leave out
  std::map<std::string, at::Tensor> outputs;

  // ---- the blackboard: what layers of one forward leave for later ones ----------------------------------------------
  /// What an earlier layer published under this name (Info.consumes lists it); undefined when none did.
  at::Tensor consume(const std::string& name) const { return input(name); }
  /// Leaves a tensor for later layers (Info.publishes lists it). `make` runs only when somebody will read it.
  void publish(const std::string& name, const std::function<at::Tensor()>& make);
  /// A scalar auxiliary loss (Info.losses lists it); `make` runs only when it is wanted.
  void loss(const std::string& name, const std::function<at::Tensor()>& make);

  // ---- tokens ------------------------------------------------------------------------------------------------------
  /// x is tokens of the call: x itself or "memory", whose tokens are dealt out over the shards as those of x are, each
  /// by their own number.
  ///
  /// (N) or (B, N) int64: the positions of x's tokens (dimension 1) in their sequences, those of earlier steps counted,
  /// counted from each segment's start when packed. The input "positions" where the call gives it.
  at::Tensor positions(const at::Tensor& x) const;
  /// (B, N) boolean, true at padding: tokens of x that do not exist; undefined without the input "lengths".
  at::Tensor padding(const at::Tensor& x) const { return padding(x, input("lengths")); }
  /// The same by other lengths (B): padding(memory, input("memory_lengths")). Undefined without them.
  at::Tensor padding(const at::Tensor& x, const at::Tensor& lengths) const;
  /// Whether x holds only some of its tokens: then places are asked of the context, never counted.
  bool sharded() const;
  /// How many tokens the sequence of x has, on all shards (dimension 1 of x where tokens lie here).
  c10::SymInt tokens(const at::Tensor& x) const;
  /// (N) int64: the places of x's tokens (dimension 1) in the whole, from 0, whatever "positions" says.
  at::Tensor indices(const at::Tensor& x) const;
  /// x without the context's prefix tokens, which lie first in the whole: (B, N - prefix, ...).
  at::Tensor behind_prefix(const at::Tensor& x) const;
  /// The token at one place of the whole, (B, ...); differentiable.
  at::Tensor token(const at::Tensor& x, int64_t place);
  /// Packed sequences: x is (1, T, D) and "cu_seqlens" (S + 1) holds where each begins, 0 first and T last.
  /// `segments` is (T) int64, the segment of each token; both undefined when the call is not packed. A mechanism that
  /// mixes tokens only in `attend` need not ask.
  at::Tensor cu_seqlens() const;
  at::Tensor segments(const at::Tensor& x) const;

  // ---- what spans the sequence -------------------------------------------------------------------------------------
  /// regard::attention over all tokens: those of earlier steps (the mechanism appends them), of other shards, and of
  /// the same segment only when packed. Edits are applied, taps are read.
  /// In a decode query() counts the tokens of earlier steps. `arguments.path` is the context's.
  AttentionOutput attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, AttentionSpec spec,
                         AttentionArguments arguments = {});
  /// A second pass over the pairs of an attention: a count, a sum, a normalizer. The masks, weights and operands of the
  /// call's edits hold for it, their scores do not, and no tap reads it.
  AttentionOutput companion(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, AttentionSpec spec,
                            AttentionArguments arguments = {});
  /// The last `attend` or `companion` as it ran: packed, edited, in the order of its spec. For maps and column sums on
  /// request: attention_weights(context.attended()).
  const Attending& attended() const;
  /// regard::linear_attention likewise; the state of earlier steps is an argument (see `state`).
  LinearOutput linear(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const LinearArguments& arguments);
  at::Tensor total(const at::Tensor& part);                ///< sum of the parts of all shards; differentiable
  at::Tensor greatest(const at::Tensor& part);             ///< elementwise maximum of them; differentiable
  at::Tensor gather(const at::Tensor& part, int64_t dim);  ///< all tokens' entries in order; differentiable
  /// Throws where tokens are sharded, packed or remembered: for what has no such form. `why` is a noun phrase ("a
  /// convolution over tokens").
  void whole_only(const char* id, const std::string& why) const;

  // ---- the cache of a decode: streams that `caches(config)` of the mechanism declares
  // -----------------------------------
  bool decoding() const { return decoding_; }  ///< this call is given a cache, or asked for one
  /// Earlier entries followed by `entries` along the token dimension (-2); `entries` itself without a cache.
  at::Tensor append(const std::string& stream, const at::Tensor& entries);
  /// The last entries of earlier steps (at most the ring's length) followed by `entries`.
  at::Tensor recent(const std::string& stream, const at::Tensor& entries);
  at::Tensor state(const std::string& stream) const;  ///< undefined at the start, and without a cache
  void store(const std::string& stream, const at::Tensor& value);
  c10::SymInt past() const;  ///< tokens of earlier steps, read off an append stream

  // ---- random numbers ----------------------------------------------------------------------------------------------
  /// An int64 scalar seed for the next random stream `name`, replayable from `seed` (drawn from torch's generator when
  /// the caller gave none). The n-th call gives the n-th stream.
  at::Tensor stream(const std::string& name);
  at::Tensor seed;
  int64_t streams = 0;  ///< handed out so far
  /// Of a mechanism inside a host: its seed is the stream `name` of the host's context, drawn only when something is
  /// random. A call without random numbers leaves torch's generator alone and works under vmap.
  Context* host = nullptr;
  std::string name;
  std::string layer() const;  ///< the names of this layer and of the hosts around it: "blocks.3.attn"; "" at the top

  // ---- for the owner of the call -----------------------------------------------------------------------------------
  /// Checks the caches given against the streams declared; called before forward. `tokens` of x.
  void open(const std::string& id, const std::vector<CacheStream>& streams, const at::Tensor& x);
  /// Throws when something given or asked was not used: packed lengths, an executor over shards, a stream, a tap.
  void close(const std::string& id) const;

 private:
  void open_cache(const at::Tensor& x);
  Attending prepared(int64_t attention, Attending call) const;
  AttentionOutput computed(Attending& call);
  const CacheStream& declared(const std::string& stream, CacheStream::Kind kind) const;
  at::Tensor joined(const std::string& stream, CacheStream::Kind kind, const at::Tensor& entries);
  void keep_segments_apart(const at::Tensor& q, const at::Tensor& k, AttentionSpec& spec,
                           AttentionArguments& arguments) const;

  std::string id_;
  std::vector<CacheStream> streams_;
  bool decoding_ = false;
  int64_t attentions_ = 0;  ///< so far in this call
  std::shared_ptr<const Attending> attended_;
  mutable bool packed_read_ = false;
};

}  // namespace regard

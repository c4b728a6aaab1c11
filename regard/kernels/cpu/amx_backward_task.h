#pragma once

#include <vector>

#include "regard/kernels/cpu/amx_call.h"
#include "regard/kernels/cpu/arena.h"

/// One owner's share of the backward: some blocks of keys of one (batch, key head) against all queries that see them.
namespace regard::kernels {

/// Keys a block: dK and dV of it (float), K, K^T and V, and P and dS of 128 queries fill about half of L2, and a
/// query's operands are read once for so many keys.
constexpr int64_t kBackwardKeys = 512, kBackwardWideKeys = 256;  ///< up to width 64, and above
/// Queries a step: the depth of dV and dK in one pass of their accumulators is four tiles.
constexpr int64_t kBackwardQueries = 128;
/// Keys of S^T and dP^T at once for 32 queries: 2 x 16 KiB of float stay in L1 between products and chain rule.
constexpr int64_t kChainKeys = 128;
/// Parts into which the keys of a head are cut at most: 32 owners of one sequence keep 16 cores busy ...
constexpr int64_t kEnoughOwners = 32;
/// ... and keys of a part at least, since every part prepares all queries and adds its own dQ.
constexpr int64_t kLeastPart = 1024;

/// How the keys of a call are cut: by lengths and heads alone, so that sums have one order.
struct AmxBackwardPlan {
  AmxBackwardPlan(const AmxCall& call, const AmxGradient& gradient);

  int64_t parts() const { return static_cast<int64_t>(starts.size()) - 1; }
  int64_t queries() const { return call.M - reach.first_query; }
  int64_t dq_floats() const {  ///< of one head
    return round_up(queries(), kPanelPair) * ceil_div(call.Dh, kTile) * kTile;
  }

  const AmxCall& call;
  const AmxGradient& gradient;
  AmxReach reach;
  int64_t group, block;
  std::vector<int64_t> starts;  ///< of the parts, in keys, and the end
};

/// The queries of one head as the products read them.
struct HeadOperands {
  char *q_across = nullptr, *g_across = nullptr;  ///< B tiles [panel][width / 32] of Q^T and grad_o^T
  char *q_pairs = nullptr, *g_pairs = nullptr;    ///< B tiles [32 queries][width / 16] of Q and grad_o
  float *lse = nullptr, *delta = nullptr;         ///< base 2, +inf where no weight is; rowsum(grad_o o) - grad_lse
  std::vector<char> finite;                       ///< of each step of queries, when causal
};

class AmxBackwardTask {
 public:
  explicit AmxBackwardTask(const AmxBackwardPlan& plan);
  /// `dq`: for the head of the group, [panel][Dh][16 queries]; see dq_floats.
  void run(int64_t batch, int64_t key_head, int64_t part, float* const* dq);
  float* own_dq() { return own_dq_; }
  /// Adds the parts of dQ of one head, in order, to the gradient.
  static void write_dq(const AmxBackwardPlan& plan, int64_t batch, int64_t head, const float* dq, int64_t parts,
                       int64_t part_floats);

 private:
  void prepare(int64_t head);
  void pack_queries(const Array4<const bfloat16>& x, int64_t head, int64_t width, bool negate, char* across,
                    char* pairs);
  void enter_block(int64_t key, int64_t count);
  void step(int64_t first, int64_t count, float* dq);
  void score(int64_t first, int64_t count, int64_t seen);
  void score_chunk(int64_t panel, int64_t tile, int64_t chunk, int64_t keys, const int32_t* limit);
  void add_products(int64_t first, int64_t queries, int64_t keys, float* dq);
  bool needs_care(int64_t first, int64_t seen) const;
  void step_carefully(int64_t first, int64_t count, float* dq);
  void write_keys(int64_t part);

  const AmxBackwardPlan& plan_;
  const AmxCall& call_;
  const AmxKernels& kernels_;
  const int64_t q_depth_, v_depth_, q_tiles_, v_tiles_;  ///< tiles of 32 and of 16 in Dh and Dv
  HeadOperands head_;
  int64_t batch_ = 0, key_head_ = 0, query_head_ = 0, part_start_ = 0, key_ = 0, count_ = 0;
  RowTiles k_, v_;
  bool keys_finite_ = true;
  char *k_room_ = nullptr, *v_room_ = nullptr, *k_across_ = nullptr;
  float *dots_ = nullptr, *dp_ = nullptr;
  char *p_ = nullptr, *ds_ = nullptr, *ds_pairs_ = nullptr;
  float *dk_ = nullptr, *dv_ = nullptr;  ///< of the part: [16 keys][width / 16] tiles
  float* own_dq_ = nullptr;
};

}  // namespace regard::kernels

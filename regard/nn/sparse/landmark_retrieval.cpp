#include "regard/nn/sparse/landmark_retrieval.h"

#include <algorithm>

#include "regard/nn/dense/rotary.h"
#include "regard/ops/landmark.h"
#include "regard/ops/stripe.h"

namespace regard {
namespace {

at::Tensor turned(const LandmarkChunk& chunk, const at::Tensor& t, const at::Tensor& positions) {
  return landmark_turn(t, positions, chunk.frequencies);
}

at::Tensor range(int64_t begin, int64_t end, const at::Tensor& like) {
  return at::arange(begin, end, like.options().dtype(at::kLong).requires_grad(std::nullopt));
}

/// Where everything of one call stands.
struct Places {
  int64_t block = 0;       ///< b tokens, the landmark last
  int64_t blocks = 0;      ///< finished by earlier calls
  int64_t chosen = 0;      ///< fetched for each query
  int64_t unfinished = 0;  ///< tokens of the block that earlier calls left open
  int64_t start() const { return std::min(blocks, chosen + 1) * block; }  ///< position of the first of these
  /// Place of each finished block, by age: 1 .. chosen for the newest, 0 for all older ones.
  at::Tensor slots(const at::Tensor& like) const {
    return (range(0, blocks, like) - (blocks - chosen - 1)).clamp_min(0);
  }
};

/// (B, H, M, chosen) int64, ascending: which blocks each query fetches. A choice: nothing is differentiated.
at::Tensor choose(const Landmark::Config& config, const LandmarkChunk& chunk, const Places& places,
                  const at::Tensor& q) {
  const at::Tensor landmarks =
      chunk.k.detach().slice(2, 0, places.blocks * places.block).slice(2, places.block - 1, std::nullopt, places.block);
  const at::Tensor keys = turned(chunk, landmarks, places.slots(q) * places.block + (places.block - 1));
  at::Tensor share = at::softmax(at::matmul(q, keys.transpose(-2, -1)) * chunk.scale, -1);  // (B, H, M, blocks)
  if (config.selection == "max_over_tokens") share = share.amax({2}, true).expand_as(share);
  if (config.selection == "max_over_heads") share = share.amax({1}, true).expand_as(share);
  return std::get<0>(std::get<1>(share.topk(places.chosen, -1)).sort(-1));
}

/// Chosen blocks of t (B, H, blocks b, D): (B, H, m, chosen b, D).
at::Tensor fetched(const at::Tensor& t, const at::Tensor& choice, int64_t block) {
  const int64_t width = t.size(3) * block, rows = choice.size(2), chosen = choice.size(3);
  const at::Tensor whole = t.unflatten(2, {-1, block}).flatten(3);  // (B, H, blocks, b D)
  const at::Tensor index = choice.flatten(2).unsqueeze(-1).expand({-1, -1, -1, width});
  return whole.gather(2, index).view({t.size(0), t.size(1), rows, chosen * block, t.size(3)});
}

/// Fetched blocks end with a landmark each; the tokens that lie here go on counting.
ops::LandmarkKeys keys_of(const Places& places, const at::Tensor& row, int64_t local) {
  const at::Tensor fetch = range(0, places.chosen * places.block, row), here = range(0, local, row);
  ops::LandmarkKeys keys;
  const at::Tensor place = at::cat({fetch, here}).remainder(places.block);
  keys.is_mem = place.eq(places.block - 1).unsqueeze(0);
  keys.section = ops::landmark_sections(keys.is_mem);
  keys.current = (row.floor_divide(places.block) + places.chosen).unsqueeze(0);
  const at::Tensor seen = here <= row.unsqueeze(1);
  keys.allowed = at::cat({at::ones({row.size(0), fetch.size(0)}, seen.options()), seen}, 1);
  return keys;
}

int64_t rows_of(const LandmarkChunk& chunk, int64_t keys) {
  constexpr int64_t entries = int64_t{1} << 22;  // of the fetched keys, the largest tensors
  return std::max<int64_t>(1,
                           entries / std::max<int64_t>(1, chunk.q.size(0) * chunk.q.size(1) * chunk.q.size(3) * keys));
}

}  // namespace

at::Tensor landmark_turn(const at::Tensor& t, const at::Tensor& positions, const at::Tensor& frequencies) {
  if (!frequencies.defined()) return t;
  const at::Tensor angles = positions.to(frequencies.scalar_type()).unsqueeze(-1) * frequencies;
  return rotate_by(t, angles.cos(), angles.sin(), 2 * frequencies.size(0), /*interleaved=*/true);
}

at::Tensor landmark_retrieval(const Landmark::Config& config, const LandmarkChunk& chunk) {
  Places places;
  places.block = config.block();
  places.blocks = chunk.past / places.block;
  places.chosen = std::min(config.topk.value_or(places.blocks), places.blocks);
  places.unfinished = chunk.past % places.block;
  const int64_t stored = places.blocks * places.block, M = chunk.q.size(2), local = places.unfinished + M;

  const at::Tensor q = turned(chunk, chunk.q, range(0, M, chunk.q) + (places.start() + places.unfinished));
  const at::Tensor k = turned(chunk, chunk.k.slice(2, stored), range(0, local, chunk.q) + places.start());
  const at::Tensor choice = choose(config, chunk, places, q.detach()), slots = places.slots(choice);
  const ops::StripeFunction stripe = [=](const ops::Rows& rows, const std::vector<at::Tensor>& in) {
    const at::Tensor own = rows.of(in[0], 2), chosen = rows.of(choice, 2);
    // The r-th block fetched lies at r b, one place later if it is among the newest.
    const at::Tensor later = (slots.take(chosen) > 0).to(at::kLong) * places.block;
    const at::Tensor positions =
        at::repeat_interleave(later, places.block, -1) + range(0, places.chosen * places.block, choice);
    const at::Tensor far = turned(chunk, fetched(in[1], chosen, places.block), positions);
    const at::Tensor values = fetched(in[2], chosen, places.block);
    const at::Tensor logits =
        at::cat({at::matmul(far, own.unsqueeze(-1)).squeeze(-1), at::matmul(own, in[3].transpose(-2, -1))}, -1) *
        chunk.scale;
    const at::Tensor row = rows.index(choice.options()) + places.unfinished;
    const at::Tensor weights = ops::landmark_softmax(logits, keys_of(places, row, local));
    const auto parts = weights.split_with_sizes({places.chosen * places.block, local}, -1);
    return std::vector<at::Tensor>{at::matmul(parts[0].unsqueeze(3), values).squeeze(3) + at::matmul(parts[1], in[4])};
  };
  const std::vector<at::Tensor> inputs = {q, chunk.k.slice(2, 0, stored), chunk.v.slice(2, 0, stored), k,
                                          chunk.v.slice(2, stored)};
  const int64_t block =
      config.block_rows > 0 ? config.block_rows : rows_of(chunk, places.chosen * places.block + local);
  return ops::run_stripes(M, block, inputs, stripe, {ops::Combine::concatenate(2)})[0];
}

}  // namespace regard

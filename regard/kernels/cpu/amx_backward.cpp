// The backward pass of bfloat16 attention on AMX: five products, one owner of each sum. See amx_backward_task.cpp for
// the work of an owner. Owners are (batch, key head, part of the keys); parts are cut by lengths and heads alone.
// Where there are several, each has a dQ of its own, and these are added in the order of the keys.
#include "regard/base/parallel.h"
#include "regard/kernels/cpu/amx.h"
#include "regard/kernels/cpu/amx_backward_task.h"
#include "regard/kernels/cpu/routes.h"

namespace regard::kernels {
namespace {

/// Cuts the blocks of keys into parts of about equal work: a key is worked on by the queries that see it.
std::vector<int64_t> part_starts(const AmxReach& reach, int64_t M, int64_t block, int64_t parts) {
  const auto work = [&](int64_t key) { return reach.causal ? M - std::max<int64_t>(0, key - reach.offset) : M; };
  int64_t total = 0, done = 0;
  for (int64_t key = 0; key < reach.keys; key += block) total += work(key);
  std::vector<int64_t> starts{0};
  for (int64_t key = 0; key < reach.keys; key += block) {
    if (done * parts >= total * static_cast<int64_t>(starts.size())) starts.push_back(key);
    done += work(key);
  }
  starts.push_back(reach.keys);
  return starts;
}

/// One owner a key head: dQ of a head is its own.
void run_whole(const AmxBackwardPlan& plan) {
  const AmxCall& call = plan.call;
  parallel_for(call.B * call.Hk, [&](int64_t task) {
    amx_kernels()->begin();
    AmxBackwardTask owner(plan);
    owner.run(task / call.Hk, task % call.Hk, 0, nullptr);
    amx_kernels()->end();
  });
}

void run_parts(const AmxBackwardPlan& plan) {
  const AmxCall& call = plan.call;
  const int64_t heads = call.B * call.H, floats = plan.dq_floats(), parts = plan.parts();
  Arena memory;  // of dQ: uninitialized, first written by its owner
  float* dq = plan.gradient.q != nullptr ? memory.take<float>(parts * heads * floats) : nullptr;
  parallel_for(call.B * call.Hk * parts, [&](int64_t task) {
    const int64_t part = task % parts, sequence = task / parts;
    std::vector<float*> of_heads;
    for (int64_t g = 0; g < plan.group; ++g) {
      of_heads.push_back(dq == nullptr ? nullptr : dq + (part * heads + sequence * plan.group + g) * floats);
    }
    amx_kernels()->begin();
    AmxBackwardTask owner(plan);
    owner.run(sequence / call.Hk, sequence % call.Hk, part, of_heads.data());
    amx_kernels()->end();
  });
  if (dq == nullptr) return;
  parallel_for(heads, [&](int64_t head) {
    AmxBackwardTask::write_dq(plan, head / call.H, head % call.H, dq + head * floats, parts, heads * floats);
  });
}

}  // namespace

AmxBackwardPlan::AmxBackwardPlan(const AmxCall& c, const AmxGradient& g) : call(c), gradient(g), reach(c) {
  group = call.H / call.Hk;
  const int64_t most = std::max(call.Dh, call.Dv) <= 64 ? kBackwardKeys : kBackwardWideKeys;
  const int64_t blocks = std::max<int64_t>(1, ceil_div(reach.keys, most));
  block = std::max(kTileDepth, round_up(ceil_div(reach.keys, blocks), kTileDepth));
  const int64_t parts = std::clamp<int64_t>(reach.keys / kLeastPart, 1, ceil_div(kEnoughOwners, call.Hk));
  starts = part_starts(reach, call.M, block, parts);
}

void amx_backward(const AmxCall& call, const AmxGradient& gradient) {
  count_route(Route::amx);
  if (call.B * call.H * call.M * call.N == 0) return;
  const AmxBackwardPlan plan(call, gradient);
  if (plan.queries() == 0) return;
  plan.parts() == 1 ? run_whole(plan) : run_parts(plan);
}

}  // namespace regard::kernels

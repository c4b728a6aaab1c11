// The forward pass of bfloat16 attention on AMX. One task owns some queries of one (batch, key head), up to 16 pairs
// of panels (32 queries each), for a few of the heads that read the key head. Blocks of keys outside, queries inside:
//
//     K block      A tiles, in place: 16 keys x 32 features
//     V^T block    A tiles, packed once a block for all queries of the task: 16 features x 32 keys
//     S^T = K Q^T          Q^T packed once a task, pairs of features side by side; S^T float, 32 KiB
//     m, l, P^T            online softmax down the keys, a query a lane; P^T in bf16 takes the place of S^T, pairs of
//                          keys side by side, just as the next product reads it
//     O^T += V^T P^T       float, in L2; rescaled only when a maximum moved
//
// The softmax of one tile of queries runs in the vector units while the tile unit works on its neighbors: O^T of the
// one before in the first panel, S^T of the one after in the second. At the end O^T / l is transposed and rounded to
// the output. A query's arithmetic depends on its own position and on the blocks of keys alone: bits depend on neither
// threads, batch-mates nor on how queries are cut into tasks.
#include <limits>

#include "regard/base/parallel.h"
#include "regard/kernels/cpu/amx.h"
#include "regard/kernels/cpu/amx_forward_task.h"
#include "regard/kernels/cpu/routes.h"

namespace regard::kernels {
namespace {

/// Rows that see no key.
void write_empty_rows(const AmxCall& call, int64_t count) {
  for (int64_t row = 0; row < call.B * call.H * count; ++row) {
    const int64_t batch = row / (call.H * count), head = row / count % call.H, query = row % count;
    bfloat16* o = call.o.data + batch * call.o.batch + head * call.o.head + query * call.o.row;
    for (int64_t d = 0; d < call.Dv; ++d) o[d * call.o.column] = {0};
    call.lse[(batch * call.H + head) * call.M + query] = -std::numeric_limits<float>::infinity();
  }
}

}  // namespace

AmxForwardPlan::AmxForwardPlan(const AmxCall& c) : call(c), reach(c) {
  group = call.H / call.Hk;
  heads = std::min(group, kTaskHeads);
  head_sets = ceil_div(group, heads);
  queries = call.M - reach.first_query;
  span = std::max(kPanelPair, kTaskTiles / heads * kPanelPair);
  while (span > kLeastSpan && tasks() < kEnoughTasks) span = round_up(span / 2, kPanelPair);
}

void amx_forward(const AmxCall& call) {
  count_route(Route::amx);
  if (call.B * call.H * call.M == 0) return;
  const AmxForwardPlan plan(call);
  write_empty_rows(call, plan.reach.first_query);
  const int64_t sequences = call.B * call.Hk * plan.head_sets, tasks = plan.tasks();
  parallel_for(tasks, [&](int64_t task) {
    // From the last queries, which see the most keys when causal.
    const int64_t span = plan.spans() - 1 - task / sequences, sequence = task % sequences;
    const int64_t key_head = sequence / plan.head_sets;
    amx_kernels()->begin();
    AmxForwardTask(plan).run(key_head / call.Hk, key_head % call.Hk, sequence % plan.head_sets, span);
    amx_kernels()->end();
  });
}

}  // namespace regard::kernels

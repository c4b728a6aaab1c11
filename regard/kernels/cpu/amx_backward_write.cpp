// The sums of an owner to the gradients.
#include "regard/kernels/cpu/amx_backward_task.h"

namespace regard::kernels {

void AmxBackwardTask::write_keys(int64_t part) {
  const auto add = [&](float* gradient, const float* sums, int64_t width) {
    if (gradient == nullptr) return;
    const int64_t tiles = ceil_div(width, kTile);
    float* rows = gradient + (batch_ * call_.Hk + key_head_) * call_.N * width;
    for (int64_t key = part_start_; key < plan_.starts[part + 1]; ++key) {
      const int64_t at = key - part_start_;
      for (int64_t t = 0; t < tiles; ++t) {
        const float* from = sums + (at / kTile * tiles + t) * kTile * kTile + at % kTile * kTile;
        float* to = rows + key * width + t * kTile;
        const int64_t columns = std::min(kTile, width - t * kTile);
        for (int64_t d = 0; d < columns; ++d) to[d] += from[d];
      }
    }
  };
  add(plan_.gradient.k, dk_, call_.Dh);
  add(plan_.gradient.v, dv_, call_.Dv);
}

void AmxBackwardTask::write_dq(const AmxBackwardPlan& plan, int64_t batch, int64_t head, const float* dq, int64_t parts,
                               int64_t part_floats) {
  const AmxCall& call = plan.call;
  float ones[kTile];
  std::fill_n(ones, kTile, 1.0f);
  PanelOut out;
  out.parts = parts;
  out.part = part_floats;
  out.width = call.Dh;
  out.factor = ones;
  const int64_t panel = ceil_div(call.Dh, kTile) * kTile * kTile;
  for (int64_t first = 0; first < plan.queries(); first += kTile) {
    out.panel = dq + first / kTile * panel;
    out.count = std::min(kTile, plan.queries() - first);
    out.floats = plan.gradient.q + ((batch * call.H + head) * call.M + plan.reach.first_query + first) * call.Dh;
    amx_kernels()->write(out);
  }
}

}  // namespace regard::kernels

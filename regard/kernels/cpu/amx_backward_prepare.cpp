// The queries of one head, packed in the ways that the products of the backward read them.
#include <cstring>
#include <limits>

#include "regard/kernels/cpu/amx_backward_task.h"

namespace regard::kernels {

void AmxBackwardTask::prepare(int64_t head) {
  const int64_t first = plan_.reach.first_query, queries = plan_.queries(), padded = round_up(queries, kPanelPair);
  const AmxGradient& g = plan_.gradient;
  pack_queries(call_.q, head, call_.Dh, call_.scale < 0, head_.q_across, head_.q_pairs);
  pack_queries(g.grad_o, head, call_.Dv, false, head_.g_across, head_.g_pairs);
  RowDots dots;
  dots.a = bits_at(g.grad_o, batch_, head, first);
  dots.a_row = g.grad_o.row;
  dots.a_column = g.grad_o.column;
  dots.b = bits_at(g.o, batch_, head, first);
  dots.b_row = g.o.row;
  dots.b_column = g.o.column;
  dots.rows = queries;
  dots.columns = call_.Dv;
  dots.out = head_.delta;
  kernels_.row_dots(dots);
  const int64_t row = (batch_ * call_.H + head) * call_.M + first;
  for (int64_t i = 0; i < padded; ++i) {
    const float lse = i < queries ? g.lse[row + i] : 0;
    const bool empty = i >= queries || lse == -std::numeric_limits<float>::infinity();
    head_.lse[i] = empty ? std::numeric_limits<float>::infinity() : static_cast<float>(lse * std::numbers::log2e);
    if (empty) head_.delta[i] = 0;
    if (!empty && g.grad_lse != nullptr) head_.delta[i] -= g.grad_lse[row + i];
  }
  head_.finite.clear();
  for (int64_t i = 0; i < queries && plan_.reach.causal; i += kBackwardQueries) {
    const int64_t count = std::min(kBackwardQueries, queries - i);
    const auto finite = [&](const Array4<const bfloat16>& x, int64_t width) {
      return kernels_.finite(bits_at(x, batch_, head, first + i), x.row, x.column, count, width);
    };
    head_.finite.push_back(finite(call_.q, call_.Dh) && finite(g.grad_o, call_.Dv));
  }
}

void AmxBackwardTask::pack_queries(const Array4<const bfloat16>& x, int64_t head, int64_t width, bool negate,
                                   char* across, char* pairs) {
  const int64_t queries = plan_.queries(), line = ceil_div(width, kTileDepth) * kTileBytes;
  TilePack pack = pack_of(x, bits_at(x, batch_, head, plan_.reach.first_query), queries, width);
  pack.packing = Packing::across;
  pack.negate = negate;
  pack.out = across;
  pack.row_tile = line;
  pack.column_tile = kTileBytes;
  kernels_.pack(pack);
  // The products take panels two by two: the second one of the last pair may be missing.
  if (ceil_div(queries, kTile) % 2 == 1) std::memset(across + ceil_div(queries, kTile) * line, 0, line);
  pack.packing = Packing::pairs;
  pack.negate = false;
  pack.out = pairs;
  pack.row_tile = ceil_div(width, kTile) * kTileBytes;
  kernels_.pack(pack);
}

}  // namespace regard::kernels

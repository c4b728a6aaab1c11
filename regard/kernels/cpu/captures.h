#pragma once

#include <vector>

#include "regard/algebra/interval.h"
#include "regard/kernels/attention.h"
#include "regard/kernels/cpu/program.h"

namespace regard::kernels {

/// Sizes and leaves of a call that expressions see, whatever its type T.
struct PairSpace {
  int64_t batches = 0, heads = 0, queries = 0, keys = 0, query_offset = 0;
  double scale = 1;
  Tile tile(int64_t batch, int64_t head, int64_t row_begin, int64_t row_end, int64_t column_begin,
            int64_t column_end) const;
};

/// The capture of this name; throws when the call does not bring it.
const Capture& find_capture(const std::vector<Capture>& captures, const std::string& name);

/// Ranges of captured values over boxes of at most a few thousand elements, read from the tensors themselves.
CaptureRange capture_range(const std::vector<Capture>& captures);

/// The program's reads bound to the call's tensors. A read whose indices are proven to lie inside by interval analysis
/// over the whole call is not checked again.
std::vector<Reading> bind_reads(const Program& program, const std::vector<Capture>& captures, const PairSpace& space);

}  // namespace regard::kernels

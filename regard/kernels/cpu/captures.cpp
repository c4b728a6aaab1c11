#include "regard/kernels/cpu/captures.h"

#include <algorithm>
#include <cmath>

#include "regard/base/error.h"
#include "regard/base/names.h"

namespace regard::kernels {
namespace {

constexpr int64_t kRangeElements = 4096;  // a scan this long costs less than the tile that it may spare
constexpr int64_t kProofs = 1024;         // (batch, head) pairs over which a proof is worth trying

Type type_of(Element element) {
  if (element == Element::boolean) return Type::boolean;
  return element == Element::int32 || element == Element::int64 ? Type::integer : Type::real;
}

double element_at(const Capture& capture, int64_t offset) {
  switch (capture.element) {
    case Element::boolean:
      return static_cast<const uint8_t*>(capture.data)[offset] != 0;
    case Element::int32:
      return static_cast<const int32_t*>(capture.data)[offset];
    case Element::int64:
      return static_cast<double>(static_cast<const int64_t*>(capture.data)[offset]);
    case Element::float32:
      return static_cast<const float*>(capture.data)[offset];
    default:
      return static_cast<const double*>(capture.data)[offset];
  }
}

void widen(const Capture& capture, const std::vector<int64_t>& low, const std::vector<int64_t>& high, size_t dimension,
           int64_t offset, Interval& range, bool& ordered) {
  if (dimension == low.size()) {
    const double value = element_at(capture, offset);
    ordered &= !std::isnan(value);
    range = {std::min(range.low, value), std::max(range.high, value)};
    return;
  }
  for (int64_t i = low[dimension]; i <= high[dimension]; ++i) {
    widen(capture, low, high, dimension + 1, offset + i * capture.strides[dimension], range, ordered);
  }
}

Interval range_of(const Capture& capture, const std::vector<Interval>& indices) {
  if (indices.size() != capture.sizes.size()) return Interval::everything();
  std::vector<int64_t> low, high;
  int64_t elements = 1;
  for (size_t k = 0; k < indices.size(); ++k) {
    if (!(indices[k].low >= 0 && indices[k].high < static_cast<double>(capture.sizes[k]))) {
      return Interval::everything();
    }
    low.push_back(static_cast<int64_t>(std::ceil(indices[k].low)));
    high.push_back(static_cast<int64_t>(std::floor(indices[k].high)));
    elements *= std::max<int64_t>(high[k] - low[k] + 1, 0);
    if (elements == 0 || elements > kRangeElements) return Interval::everything();
  }
  Interval range{INFINITY, -INFINITY};
  bool ordered = true;
  widen(capture, low, high, 0, 0, range, ordered);
  return ordered ? range : Interval::everything();
}

/// Whether index `expr` lies in [0, size) for every pair of the call.
bool proven(const Expr& expr, int64_t size, const PairSpace& space, const CaptureRange& ranges) {
  if (expr.op() == Op::batch) return space.batches <= size;
  if (expr.op() == Op::head) return space.heads <= size;
  const Dependence varies = dependence(expr);
  const int64_t batches = varies.batch ? space.batches : std::min<int64_t>(space.batches, 1);
  const int64_t heads = varies.head ? space.heads : std::min<int64_t>(space.heads, 1);
  if (batches * heads > kProofs) return false;
  for (int64_t b = 0; b < batches; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      const Interval range = bounds(expr, space.tile(b, h, 0, space.queries, 0, space.keys), ranges);
      if (!(range.low >= 0 && range.high <= static_cast<double>(size - 1))) return false;
    }
  }
  return true;
}

Reading bind_read(const Expr& expr, const Capture& capture, const PairSpace& space, const CaptureRange& ranges) {
  const std::vector<Expr>& indices = expr.node().args;
  if (indices.size() != capture.sizes.size()) {
    fail("attention", "captured tensor '" + capture.name + "' of " + std::to_string(indices.size()) + " dimensions",
         std::to_string(capture.sizes.size()));
  }
  // A narrower type may stand for a wider one, as in arithmetic.
  if (type_of(capture.element) > expr.type()) {
    fail("attention", "captured tensor '" + capture.name + "' of type " + name_of(expr.type()),
         name_of(type_of(capture.element)));
  }
  Reading reading;
  reading.data = capture.data;
  reading.element = static_cast<int32_t>(capture.element);
  reading.rank = static_cast<int32_t>(indices.size());
  for (size_t k = 0; k < indices.size(); ++k) {
    reading.sizes[k] = capture.sizes[k];
    reading.strides[k] = capture.strides[k];
    reading.checked = reading.checked || !proven(indices[k], capture.sizes[k], space, ranges);
  }
  return reading;
}

}  // namespace

Tile PairSpace::tile(int64_t batch, int64_t head, int64_t row_begin, int64_t row_end, int64_t column_begin,
                     int64_t column_end) const {
  Tile t;
  t.batch = batch;
  t.head = head;
  t.row_begin = row_begin;
  t.row_end = row_end;
  t.column_begin = column_begin;
  t.column_end = column_end;
  t.batches = batches;
  t.heads = heads;
  t.queries = queries;
  t.keys = keys;
  t.query_offset = query_offset;
  t.scale = scale;
  return t;
}

const Capture& find_capture(const std::vector<Capture>& captures, const std::string& name) {
  for (const Capture& capture : captures) {
    if (capture.name == name) return capture;
  }
  std::vector<std::string> names;
  for (const Capture& capture : captures) names.push_back(capture.name);
  fail("attention", "a captured tensor '" + name + "'", names.empty() ? "none" : quoted_list(names));
}

CaptureRange capture_range(const std::vector<Capture>& captures) {
  return [&captures](const std::string& name, const std::vector<Interval>& indices) {
    return range_of(find_capture(captures, name), indices);
  };
}

std::vector<Reading> bind_reads(const Program& program, const std::vector<Capture>& captures, const PairSpace& space) {
  const CaptureRange ranges = capture_range(captures);
  std::vector<Reading> readings;
  for (const Read& read : program.reads) {
    readings.push_back(bind_read(read.expr, find_capture(captures, read.expr.node().name), space, ranges));
  }
  return readings;
}

}  // namespace regard::kernels

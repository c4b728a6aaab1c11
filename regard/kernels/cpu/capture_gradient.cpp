#include "regard/kernels/cpu/capture_gradient.h"

#include <algorithm>

#include "regard/base/parallel.h"

namespace regard::kernels {
namespace {

constexpr int64_t kBufferBytes = 32 << 20;  // all buffers of a wave together
constexpr int64_t kMostUnits = 64;          // ranges of tasks with buffers of their own: enough for many cores

/// The query itself, or shifted by a constant.
bool is_query(const Expr& e) {
  if (e.op() == Op::query || e.op() == Op::row) return true;
  const auto& args = e.node().args;
  if (e.op() == Op::add)
    return (is_query(args[0]) && args[1].is_constant()) || (is_query(args[1]) && args[0].is_constant());
  return e.op() == Op::sub && is_query(args[0]) && args[1].is_constant();
}

std::vector<WantedCapture> wanted_of(const std::vector<Capture>& captures, const std::vector<Derivative>& derivatives) {
  std::vector<WantedCapture> wanted;
  for (const Capture& capture : captures) {
    if (capture.gradient == nullptr) continue;
    WantedCapture w{&capture, ownership_of(capture.name, derivatives), 1, std::vector<int64_t>(capture.sizes.size())};
    for (size_t k = capture.sizes.size(); k-- > 0;) {
      w.strides[k] = w.elements;
      w.elements *= capture.sizes[k];
    }
    wanted.push_back(std::move(w));
  }
  return wanted;
}

}  // namespace

Ownership ownership_of(const std::string& name, const std::vector<Derivative>& derivatives) {
  std::vector<const Node*> reads;
  for (const Derivative& d : derivatives) {
    if (d.leaf.op() == Op::capture && d.leaf.node().name == name) reads.push_back(d.leaf.pointer());
  }
  Ownership owner;
  for (size_t k = 0; !reads.empty() && k < reads[0]->args.size(); ++k) {
    const Expr& index = reads[0]->args[k];
    const bool alike = std::all_of(reads.begin(), reads.end(), [&](const Node* read) {
      return k < read->args.size() && same(read->args[k], index);
    });
    if (!alike) continue;
    owner.batch = owner.batch || index.op() == Op::batch;
    owner.head = owner.head || index.op() == Op::head;
    owner.query = owner.query || is_query(index);
  }
  return owner;
}

template <class T>
GradientSchedule::GradientSchedule(const Plan<T>& plan, const std::vector<Derivative>& derivatives, int64_t query_tiles)
    : wanted_(wanted_of(plan.call.captures, derivatives)),
      batches_(plan.call.B),
      heads_(plan.call.H),
      tiles_(query_tiles) {
  int64_t buffer_bytes = 0;
  bool batch_by_batch = false;
  for (const WantedCapture& w : wanted_) {
    if (w.owner.query) {
      merge_batches_ = merge_batches_ || !w.owner.batch;
      merge_heads_ = merge_heads_ || !w.owner.head;
    } else {
      buffer_bytes += std::max<int64_t>(w.elements, 1) * static_cast<int64_t>(sizeof(double));
      batch_by_batch = batch_by_batch || w.owner.batch;
    }
  }
  groups_ = tiles_ * (merge_heads_ ? 1 : heads_) * (merge_batches_ ? 1 : batches_);
  if (batch_by_batch && !merge_batches_) {
    waves_ = batches_;
    groups_ /= std::max<int64_t>(batches_, 1);
  }
  units_ = groups_;
  serial_ = buffer_bytes > kBufferBytes;
  if (buffer_bytes > 0) {
    units_ = std::min({groups_, kMostUnits, std::max<int64_t>(kBufferBytes / buffer_bytes, 1)});
  }
}

GradientBuffers::GradientBuffers(const GradientSchedule& schedule) : schedule_(schedule) {
  const auto& wanted = schedule.wanted();
  const bool any = [&] {
    for (size_t c = 0; c < wanted.size(); ++c) {
      if (schedule.buffered(c)) return true;
    }
    return false;
  }();
  if (!any) return;
  sums_.resize(static_cast<size_t>(schedule.units()));
  for (auto& unit : sums_) {
    unit.resize(wanted.size());
    for (size_t c = 0; c < wanted.size(); ++c) {
      if (schedule.buffered(c)) unit[c].assign(static_cast<size_t>(wanted[c].elements), 0.0);
    }
  }
}

double* GradientBuffers::of(int64_t unit, size_t capture) { return sums_[static_cast<size_t>(unit)][capture].data(); }

template <class T>
void GradientBuffers::flush() {
  constexpr int64_t kPart = 4096;  // elements a task: some microseconds
  for (size_t c = 0; !sums_.empty() && c < schedule_.wanted().size(); ++c) {
    if (!schedule_.buffered(c)) continue;
    T* gradient = static_cast<T*>(schedule_.wanted()[c].capture->gradient);
    const int64_t elements = schedule_.wanted()[c].elements;
    parallel_for((elements + kPart - 1) / kPart, [&](int64_t part) {
      for (int64_t e = part * kPart; e < std::min(elements, (part + 1) * kPart); ++e) {
        double sum = 0;
        for (auto& unit : sums_) {
          sum += unit[c][static_cast<size_t>(e)];
          unit[c][static_cast<size_t>(e)] = 0;
        }
        gradient[e] += static_cast<T>(sum);
      }
    });
  }
}

namespace {

/// Offset of the entry that the pair (step, lane) reads.
template <class T>
int64_t entry(const TileEvaluator<T>& program, const Derivative& d, const WantedCapture& w, int64_t step, int64_t lane,
              bool& inside) {
  int64_t offset = 0;
  for (size_t k = 0; k < d.index.size(); ++k) {
    const int32_t index = program.integer_at(d.index[k], step, lane);
    inside = inside && index >= 0 && index < w.capture->sizes[k];
    offset += index * w.strides[k];
  }
  return offset;
}

}  // namespace

/// Pairs that read one entry are summed before it is touched: all for a scalar read, a lane's or a step's otherwise.
/// A pair whose index lies outside is hidden (else the forward had refused the call), so its term is 0.
template <class T, class Sum>
void scatter(const TileEvaluator<T>& program, const Derivative& d, const WantedCapture& w, const T* terms,
             int64_t steps, int64_t lanes, Sum* gradient) {
  auto add = [&](int64_t step, int64_t lane, Sum term) {
    bool inside = true;
    const int64_t offset = entry(program, d, w, step, lane, inside);
    if (inside) gradient[offset] += term;
  };
  if (d.shape == Shape::pair) {
    for (int64_t s = 0; s < steps; ++s) {
      for (int64_t l = 0; l < lanes; ++l) add(s, l, static_cast<Sum>(terms[s * kLanes + l]));
    }
    return;
  }
  Sum by_lane[kLanes] = {};
  Sum all = 0;
  for (int64_t s = 0; s < steps; ++s) {
    Sum by_step = 0;
    for (int64_t l = 0; l < lanes; ++l) {
      by_step += static_cast<Sum>(terms[s * kLanes + l]);
      by_lane[l] += static_cast<Sum>(terms[s * kLanes + l]);
    }
    if (d.shape == Shape::step) add(s, 0, by_step);
    all += by_step;
  }
  if (d.shape == Shape::scalar) add(0, 0, all);
  for (int64_t l = 0; l < lanes && d.shape == Shape::lane; ++l) add(0, l, by_lane[l]);
}

#define REGARD_INSTANTIATE(T)                                                                                         \
  template GradientSchedule::GradientSchedule(const Plan<T>&, const std::vector<Derivative>&, int64_t);               \
  template void GradientBuffers::flush<T>();                                                                          \
  template void scatter(const TileEvaluator<T>&, const Derivative&, const WantedCapture&, const T*, int64_t, int64_t, \
                        T*);
REGARD_INSTANTIATE(float)
REGARD_INSTANTIATE(double)
#undef REGARD_INSTANTIATE
template void scatter(const TileEvaluator<float>&, const Derivative&, const WantedCapture&, const float*, int64_t,
                      int64_t, double*);

}  // namespace regard::kernels

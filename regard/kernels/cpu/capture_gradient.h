#pragma once

#include <string>
#include <vector>

#include "regard/kernels/cpu/evaluator.h"
#include "regard/kernels/cpu/plan.h"

/// Gradients of captured tensors, in an order fixed by the call's sizes.
///
/// The tasks of the backward pass over queries are (batch, head, query tile). A captured tensor is *owned* when one of
/// its indices is the query itself in every read: then tasks of different query tiles never meet in an entry. The tasks
/// that may meet (other batches or heads of the same tile) form one *group*, run in order by one thread, and add into
/// the gradient. All other tensors are added into buffers, one for a contiguous range of groups, and the buffers are
/// added up in order. Where an entry belongs to one batch, batches are done one after another, so that the cut of
/// ranges never depends on batch-mates.
namespace regard::kernels {

/// Which leading coordinates all reads of a captured tensor are indexed by.
struct Ownership {
  bool batch = false, head = false, query = false;
};
Ownership ownership_of(const std::string& name, const std::vector<Derivative>& derivatives);

/// A captured tensor whose gradient is wanted.
struct WantedCapture {
  const Capture* capture = nullptr;
  Ownership owner;
  int64_t elements = 0;
  std::vector<int64_t> strides;  ///< of the contiguous gradient
};

/// How the tasks are grouped, ordered and buffered.
class GradientSchedule {
 public:
  template <class T>
  GradientSchedule(const Plan<T>& plan, const std::vector<Derivative>& derivatives, int64_t query_tiles);

  const std::vector<WantedCapture>& wanted() const { return wanted_; }
  int64_t waves() const { return waves_; }  ///< done one after another
  int64_t units() const { return units_; }  ///< of a wave, in parallel; each has its own buffers
  bool buffered(size_t capture) const { return !serial_ && !wanted_[capture].owner.query; }

  /// Calls body(batch, head, tile) for the tasks of one unit, in order.
  template <class Body>
  void for_tasks(int64_t wave, int64_t unit, const Body& body) const {
    for (int64_t group = unit * groups_ / units_; group < (unit + 1) * groups_ / units_; ++group) {
      const int64_t tile = group % tiles_;
      const int64_t head = merge_heads_ ? 0 : group / tiles_ % heads_;
      const int64_t batch = merge_batches_ ? 0 : waves_ > 1 ? wave : group / tiles_ / (merge_heads_ ? 1 : heads_);
      const int64_t last_batch = merge_batches_ ? batches_ : batch + 1, last_head = merge_heads_ ? heads_ : head + 1;
      for (int64_t b = batch; b < last_batch; ++b) {
        for (int64_t h = head; h < last_head; ++h) body(b, h, tile);
      }
    }
  }

 private:
  std::vector<WantedCapture> wanted_;
  bool merge_batches_ = false, merge_heads_ = false;
  bool serial_ = false;
  int64_t batches_ = 0, heads_ = 0, tiles_ = 0;
  int64_t groups_ = 0, units_ = 0, waves_ = 1;
};

/// The buffers of one wave: [unit][buffered capture], sums in double.
class GradientBuffers {
 public:
  explicit GradientBuffers(const GradientSchedule& schedule);
  double* of(int64_t unit, size_t capture);
  /// gradient += buffers in order of units; clears them for the next wave.
  template <class T>
  void flush();

 private:
  const GradientSchedule& schedule_;
  std::vector<std::vector<std::vector<double>>> sums_;
};

/// Adds the terms of one chunk, terms[s][l] rows kLanes apart, to where the read's indices point.
template <class T, class Sum>
void scatter(const TileEvaluator<T>& program, const Derivative& derivative, const WantedCapture& capture,
             const T* terms, int64_t steps, int64_t lanes, Sum* gradient);

}  // namespace regard::kernels

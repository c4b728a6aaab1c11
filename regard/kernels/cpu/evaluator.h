#pragma once

#include <vector>

#include "regard/kernels/cpu/arena.h"
#include "regard/kernels/cpu/captures.h"
#include "regard/kernels/cpu/program.h"

namespace regard::kernels {

/// One thread's run of a program over the tiles of one (batch, head): lanes once, then block by block of steps, chunk
/// by chunk of pairs.
template <class T>
class TileEvaluator {
 public:
  TileEvaluator(const Program& program, const std::vector<Reading>& readings, const PairSpace& space, Arena& arena);

  TileEvaluator(const TileEvaluator&) = delete;  // the frame points into the object
  TileEvaluator& operator=(const TileEvaluator&) = delete;

  /// Computes what varies with the lanes [first, first + count), or with nothing.
  void begin_lanes(int64_t batch, int64_t head, int64_t first, int64_t count);
  /// Computes what varies with the steps [first, first + count).
  void begin_steps(int64_t first, int64_t count);
  /// Runs over pairs: steps [first, first + count) of the block. `tiles`: products of the dots, whole blocks.
  /// Throws when a read outside a captured tensor is needed.
  void run(int64_t first, int64_t count, T* const* tiles);

  bool started() const { return started_; }
  void stop() { started_ = false; }  ///< the next lanes are other ones
  const Program& program() const { return program_; }
  /// Results of the last `run`; no view for register -1.
  View<T> reals(int reg) const { return view<T>(reg); }
  View<int32_t> integers(int reg) const { return view<int32_t>(reg); }
  /// An integer register at one pair of the last chunk.
  int32_t integer_at(int reg, int64_t step, int64_t lane) const;

 private:
  template <class D>
  View<D> view(int reg) const {
    if (reg < 0) return {};
    const Register& r = registers_[static_cast<size_t>(reg)];
    return {static_cast<const D*>(r.data), r.shape == Shape::pair ? kLanes : 0};
  }
  void fill(const Leaf& leaf, int64_t lane_or_step_first, int64_t count);
  double leaf_value(const Leaf& leaf) const;
  void execute(const std::vector<Instruction>& code);
  void refuse_wide_integers() const;
  void refuse_marked() const;
  void refuse_marks_of(size_t read) const;
  bool needed(Guard guard, int64_t step, int64_t lane) const;

  const Program& program_;
  const PairSpace& space_;
  std::vector<Register> registers_;
  std::vector<Reading> readings_;
  Frame frame_;
  bool started_ = false;
  bool lanes_marked_ = false, steps_marked_ = false;
  int64_t batch_ = 0, head_ = 0, first_lane_ = 0, lanes_ = 0, first_step_ = 0, steps_ = 0;
};

}  // namespace regard::kernels

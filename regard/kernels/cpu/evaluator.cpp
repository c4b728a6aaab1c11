#include "regard/kernels/cpu/evaluator.h"

#include <algorithm>

#include "regard/base/error.h"
#include "regard/kernels/cpu/rounding.h"

namespace regard::kernels {
namespace {

bool is_index(Op op) { return op == Op::query || op == Op::row || op == Op::key || op == Op::column; }

}  // namespace

template <class T>
TileEvaluator<T>::TileEvaluator(const Program& program, const std::vector<Reading>& readings, const PairSpace& space,
                                Arena& arena)
    : program_(program), space_(space), registers_(program.registers.size()), readings_(readings) {
  constexpr int64_t pairs = kChunk * kLanes;
  T* reals = arena.take<T>(program.real_slots * pairs);
  int32_t* integers = arena.take<int32_t>(program.integer_slots * pairs);
  for (size_t i = 0; i < registers_.size(); ++i) {
    const RegisterKind& kind = program.registers[i];
    registers_[i].shape = kind.shape;
    if (kind.shape != Shape::pair) {
      registers_[i].data = kind.integer ? static_cast<void*>(arena.take<int32_t>(kSteps)) : arena.take<T>(kSteps);
    } else if (kind.slot >= 0) {
      registers_[i].data = kind.integer ? static_cast<void*>(integers + kind.slot * pairs) : reals + kind.slot * pairs;
    }
  }
  frame_.registers = registers_.data();
  frame_.readings = readings_.data();
}

template <class T>
double TileEvaluator<T>::leaf_value(const Leaf& leaf) const {
  switch (leaf.op) {
    case Op::constant:
      return leaf.number;
    case Op::scale:
      return space_.scale;
    case Op::batch:
      return static_cast<double>(batch_);
    case Op::head:
      return static_cast<double>(head_);
    case Op::batches:
      return static_cast<double>(space_.batches);
    case Op::heads:
      return static_cast<double>(space_.heads);
    case Op::queries:
      return static_cast<double>(space_.queries);
    case Op::keys:
      return static_cast<double>(space_.keys);
    default:
      fail("attention", "a leaf", std::string("'") + name_of(leaf.op) + "'");
  }
}

/// Indices past the last pair repeat the last one, so that every lane reads what exists.
template <class T>
void TileEvaluator<T>::fill(const Leaf& leaf, int64_t first, int64_t count) {
  const Register& r = registers_[static_cast<size_t>(leaf.reg)];
  if (!is_index(leaf.op)) {
    const double value = leaf_value(leaf);
    if (program_.registers[static_cast<size_t>(leaf.reg)].integer) {
      std::fill_n(static_cast<int32_t*>(r.data), kSteps, static_cast<int32_t>(value));
    } else {
      std::fill_n(static_cast<T*>(r.data), kSteps, static_cast<T>(value));
    }
    return;
  }
  const int64_t offset = first + (leaf.op == Op::query ? space_.query_offset : 0);
  auto* data = static_cast<int32_t*>(r.data);
  for (int64_t i = 0; i < kSteps; ++i) data[i] = static_cast<int32_t>(offset + std::min(i, count - 1));
}

template <class T>
void TileEvaluator<T>::execute(const std::vector<Instruction>& code) {
  frame_.marked = false;
  primitives<T>().run(code.data(), static_cast<int64_t>(code.size()), frame_);
  refuse_wide_integers();
}

template <class T>
void TileEvaluator<T>::begin_lanes(int64_t batch, int64_t head, int64_t first, int64_t count) {
  started_ = true;
  batch_ = batch;
  head_ = head;
  first_lane_ = first;
  lanes_ = count;
  frame_.lanes = padded_width(count);
  for (const Leaf& leaf : program_.leaves) {
    if (program_.registers[static_cast<size_t>(leaf.reg)].shape != Shape::step) fill(leaf, first, count);
  }
  execute(program_.lane_code);
  lanes_marked_ = frame_.marked;
}

template <class T>
void TileEvaluator<T>::begin_steps(int64_t first, int64_t count) {
  first_step_ = first;
  for (const Leaf& leaf : program_.leaves) {
    if (program_.registers[static_cast<size_t>(leaf.reg)].shape == Shape::step) fill(leaf, first, count);
  }
  execute(program_.step_code);
  steps_marked_ = frame_.marked;
}

template <class T>
void TileEvaluator<T>::run(int64_t first, int64_t count, T* const* tiles) {
  for (size_t d = 0; d < program_.dots.size(); ++d) {
    if (program_.dots[d] >= 0) registers_[static_cast<size_t>(program_.dots[d])].data = tiles[d] + first * kLanes;
  }
  frame_.first_step = first;
  frame_.steps = steps_ = count;
  execute(program_.pair_code);
  if (frame_.marked || lanes_marked_ || steps_marked_) refuse_marked();
}

template <class T>
int32_t TileEvaluator<T>::integer_at(int reg, int64_t step, int64_t lane) const {
  const Register& r = registers_[static_cast<size_t>(reg)];
  const auto* data = static_cast<const int32_t*>(r.data);
  switch (r.shape) {
    case Shape::scalar:
      return data[0];
    case Shape::lane:
      return data[lane];
    case Shape::step:
      return data[frame_.first_step + step];
    default:
      return data[step * kLanes + lane];
  }
}

template <class T>
void TileEvaluator<T>::refuse_wide_integers() const {
  for (size_t i = 0; i < readings_.size(); ++i) {
    if (readings_[i].fits) continue;
    fail("attention",
         "integers of the captured tensor '" + program_.reads[i].expr.node().name + "' that fit in 32 bits",
         "one that does not");
  }
}

template <class T>
bool TileEvaluator<T>::needed(Guard guard, int64_t step, int64_t lane) const {
  const int mask = guard == Guard::every_pair ? -1 : guard == Guard::kept ? program_.keep : program_.live;
  return mask < 0 || integer_at(mask, step, lane) != 0;
}

template <class T>
void TileEvaluator<T>::refuse_marks_of(size_t read) const {
  const int marks = program_.read_registers[read];
  for (int64_t s = 0; s < steps_; ++s) {
    for (int64_t l = 0; l < lanes_; ++l) {
      if (integer_at(marks, s, l) == 0 || !needed(program_.reads[read].guard, s, l)) continue;
      int64_t query = first_lane_ + l, key = first_step_ + frame_.first_step + s;
      if (program_.lanes == Side::keys) std::swap(query, key);
      for (size_t k = 0; k < program_.read_index[read].size(); ++k) {
        const int32_t index = integer_at(program_.read_index[read][k], s, l);
        if (index >= 0 && index < readings_[read].sizes[k]) continue;
        fail("attention",
             "index " + std::to_string(k) + " of the captured tensor '" + program_.reads[read].expr.node().name +
                 "' in [0, " + std::to_string(readings_[read].sizes[k]) + ") where keep holds",
             std::to_string(index) + " at batch " + std::to_string(batch_) + ", head " + std::to_string(head_) +
                 ", row " + std::to_string(query) + ", column " + std::to_string(key));
      }
    }
  }
}

template <class T>
void TileEvaluator<T>::refuse_marked() const {
  for (size_t read = 0; read < readings_.size(); ++read) {
    if (readings_[read].checked) refuse_marks_of(read);
  }
}

template class TileEvaluator<float>;
template class TileEvaluator<double>;

}  // namespace regard::kernels

// The tile program, one instruction at a time over all pairs of a chunk: one switch an instruction, then plain loops
// over lanes in cache. Registers that vary with the step alone are spread over the lanes row by row.
// Part of primitives.inl.

/// Rows of an argument as the result's loop walks them, kLaneUnit lanes at a time: the trip count is a constant, and a
/// value that is the same along a row is one register.
template <class D>
struct Argument {
  const D* data;
  int64_t step = 0;     // distance of rows
  int64_t advance = 1;  // of lanes: 0 where one value holds for the row
  alignas(64) D row[kLaneUnit];

  const D* at(int64_t s) {
    if (advance != 0) return data + s * step;
    const D value = data[s];
    for (int64_t l = 0; l < kLaneUnit; ++l) row[l] = value;
    return row;
  }
};

/// The loop of one instruction: rows x lanes of the result.
struct Extent {
  int64_t steps, lanes, first_step;
  bool pairs;
};

inline Extent extent_of(const Instruction& i, const Frame& f) {
  if (i.shape == Shape::pair) return {f.steps, f.lanes, f.first_step, true};
  return {1, i.shape == Shape::lane ? kLanes : kSteps, 0, false};
}

template <class D>
inline void bind(Argument<D>& argument, const Frame& f, int32_t index, const Extent& e) {
  const Register& r = f.registers[index];
  argument.data = static_cast<const D*>(r.data);
  argument.step = r.shape == Shape::pair ? kLanes : 0;
  argument.advance = 1;
  if (!e.pairs || r.shape != Shape::step) return;
  argument.advance = 0;
  argument.data += e.first_step;
}

template <class D>
inline D* result_of(const Instruction& i, const Frame& f) {
  return static_cast<D*>(f.registers[i.result].data);
}

template <class In, class Out, class F>
void unary(const Instruction& i, Frame& f, F function) {
  const Extent e = extent_of(i, f);
  Argument<In> a;
  bind(a, f, i.arg[0], e);
  for (int64_t s = 0; s < e.steps; ++s) {
    const In* x = a.at(s);
    Out* out = result_of<Out>(i, f) + s * kLanes;
    for (int64_t first = 0; first < e.lanes; first += kLaneUnit) {
      const In* from = x + first * a.advance;
#pragma GCC ivdep
      for (int64_t l = 0; l < kLaneUnit; ++l) out[first + l] = function(from[l]);
    }
  }
}

template <class In, class Out, class F>
void binary(const Instruction& i, Frame& f, F function) {
  const Extent e = extent_of(i, f);
  Argument<In> a, b;
  bind(a, f, i.arg[0], e);
  bind(b, f, i.arg[1], e);
  for (int64_t s = 0; s < e.steps; ++s) {
    const In *x = a.at(s), *y = b.at(s);
    Out* out = result_of<Out>(i, f) + s * kLanes;
    for (int64_t first = 0; first < e.lanes; first += kLaneUnit) {
      const In *left = x + first * a.advance, *right = y + first * b.advance;
#pragma GCC ivdep
      for (int64_t l = 0; l < kLaneUnit; ++l) out[first + l] = function(left[l], right[l]);
    }
  }
}

template <class D>
void choose(const Instruction& i, Frame& f) {
  const Extent e = extent_of(i, f);
  Argument<int32_t> condition;
  Argument<D> a, b;
  bind(condition, f, i.arg[0], e);
  bind(a, f, i.arg[1], e);
  bind(b, f, i.arg[2], e);
  for (int64_t s = 0; s < e.steps; ++s) {
    const int32_t* c = condition.at(s);
    const D *x = a.at(s), *y = b.at(s);
    D* out = result_of<D>(i, f) + s * kLanes;
    for (int64_t first = 0; first < e.lanes; first += kLaneUnit) {
      const int32_t* chosen = c + first * condition.advance;
      const D *left = x + first * a.advance, *right = y + first * b.advance;
#pragma GCC ivdep
      for (int64_t l = 0; l < kLaneUnit; ++l) out[first + l] = chosen[l] != 0 ? left[l] : right[l];
    }
  }
}

/// The elements that kLaneUnit lanes read: at offsets, or, where the indices rise evenly, from `first` on at `along`.
struct Places {
  bool even = false;
  int64_t first = 0, along = 0;
  alignas(64) int64_t offsets[kLaneUnit] = {};
};

/// Neighbors in the lanes are often neighbors in the tensor (a table by i - j, a bias by query), or one element: then
/// nothing is computed lane by lane.
inline bool rise_evenly(const Reading& reading, const int32_t* const* index, Places& places) {
  int32_t uneven = 0;
  for (int k = 0; k < reading.rank; ++k) {
    const int32_t* at = index[k];
    const int32_t start = at[0], rise = wrap_sub(at[1], at[0]);
    for (int32_t l = 0; l < kLaneUnit; ++l) uneven |= wrap_sub(at[l], wrap_add(start, wrap_mul(l, rise)));
    places.first += start * reading.strides[k];
    places.along += rise * reading.strides[k];
  }
  return uneven == 0;
}

/// Elements of a tensor of E as D, 0 where `bad`. False when an int64 element does not fit 32 bits.
template <class E, class D>
bool gather(const Reading& reading, const Places& places, const int32_t* bad, D* out) {
  const E* data = static_cast<const E*>(reading.data);
  alignas(64) E values[kLaneUnit];
  if (places.even && places.along == 1) {
    for (int64_t l = 0; l < kLaneUnit; ++l) values[l] = data[places.first + l];
  } else if (places.even) {
    for (int64_t l = 0; l < kLaneUnit; ++l) values[l] = data[places.first + l * places.along];
  } else {
    for (int64_t l = 0; l < kLaneUnit; ++l) values[l] = bad != nullptr && bad[l] != 0 ? E(0) : data[places.offsets[l]];
  }
  bool fine = true;
  for (int64_t l = 0; l < kLaneUnit; ++l) {
    if constexpr (__is_same(E, int64_t) && __is_same(D, int32_t)) fine &= values[l] == static_cast<int32_t>(values[l]);
    out[l] = static_cast<D>(values[l]);
  }
  return fine;
}

template <class D>
bool gather_any(const Reading& reading, const Places& places, const int32_t* bad, D* out) {
  switch (reading.element) {
    case 0:
      return gather<uint8_t, D>(reading, places, bad, out);
    case 1:
      return gather<int32_t, D>(reading, places, bad, out);
    case 2:
      return gather<int64_t, D>(reading, places, bad, out);
    case 3:
      return gather<float, D>(reading, places, bad, out);
    default:
      return gather<double, D>(reading, places, bad, out);
  }
}

/// kLaneUnit lanes of one row.
template <class D>
void read_unit(const Instruction& i, Frame& f, const int32_t* const* index, D* out, int32_t* bad) {
  Reading& reading = f.readings[i.reading];
  Places places;
  places.even = bad == nullptr && rise_evenly(reading, index, places);
  if (!places.even) {
    for (int64_t l = 0; l < kLaneUnit && bad != nullptr; ++l) bad[l] = 0;
    int32_t outside = 0;
    for (int k = 0; k < reading.rank; ++k) {
      const int64_t stride = reading.strides[k], size = reading.sizes[k];
      for (int64_t l = 0; l < kLaneUnit; ++l) places.offsets[l] += index[k][l] * stride;
      for (int64_t l = 0; l < kLaneUnit && bad != nullptr; ++l) {
        bad[l] |= (index[k][l] < 0) | (index[k][l] >= size);
        outside |= bad[l];
      }
    }
    f.marked |= outside != 0;
  }
  reading.fits &= gather_any(reading, places, bad, out);
}

template <class D>
void read(const Instruction& i, Frame& f) {
  const Extent e = extent_of(i, f);
  Argument<int32_t> arguments[kRank];
  const int rank = f.readings[i.reading].rank;
  for (int k = 0; k < rank; ++k) bind(arguments[k], f, i.index[k], e);
  int32_t* bad = f.readings[i.reading].checked ? static_cast<int32_t*>(f.registers[i.bad].data) : nullptr;
  const int32_t *rows[kRank], *index[kRank];
  for (int64_t s = 0; s < e.steps; ++s) {
    for (int k = 0; k < rank; ++k) rows[k] = arguments[k].at(s);
    for (int64_t first = 0; first < e.lanes; first += kLaneUnit) {
      for (int k = 0; k < rank; ++k) index[k] = rows[k] + first * arguments[k].advance;
      const int64_t at = s * kLanes + first;
      read_unit(i, f, index, result_of<D>(i, f) + at, bad == nullptr ? nullptr : bad + at);
    }
  }
}

#define REGARD_UNARY(CODE, IN, OUT, EXPRESSION) \
  case Code::CODE:                              \
    return unary<IN, OUT>(i, f, [](IN x) { return static_cast<OUT>(EXPRESSION); });
#define REGARD_BINARY(CODE, IN, OUT, EXPRESSION) \
  case Code::CODE:                               \
    return binary<IN, OUT>(i, f, [](IN x, IN y) { return static_cast<OUT>(EXPRESSION); });

template <class T>
void run_real(const Instruction& i, Frame& f) {
  switch (i.code) {
    REGARD_BINARY(add, T, T, x + y)
    REGARD_BINARY(sub, T, T, x - y)
    REGARD_BINARY(mul, T, T, x * y)
    REGARD_BINARY(div, T, T, x / y)
    REGARD_BINARY(floor_div, T, T, floor_of(x / y))
    REGARD_BINARY(mod, T, T, mod_of(x, y))
    REGARD_BINARY(min, T, T, min_of(x, y))
    REGARD_BINARY(max, T, T, max_of(x, y))
    REGARD_BINARY(pow, T, T, pow_of(x, y))
    REGARD_BINARY(lt, T, int32_t, x < y)
    REGARD_BINARY(le, T, int32_t, x <= y)
    REGARD_BINARY(gt, T, int32_t, x > y)
    REGARD_BINARY(ge, T, int32_t, x >= y)
    REGARD_BINARY(eq, T, int32_t, x == y)
    REGARD_BINARY(ne, T, int32_t, x != y)
    REGARD_UNARY(neg, T, T, -x)
    REGARD_UNARY(abs, T, T, abs_of(x))
    REGARD_UNARY(floor, T, T, floor_of(x))
    REGARD_UNARY(exp, T, T, exp_of(x))
    REGARD_UNARY(log, T, T, log_of(x))
    REGARD_UNARY(tanh, T, T, tanh_of(x))
    REGARD_UNARY(sigmoid, T, T, sigmoid_of(x))
    REGARD_UNARY(sqrt, T, T, sqrt_of(x))
    REGARD_UNARY(cos, T, T, cos_of(x))
    REGARD_UNARY(sin, T, T, sin_of(x))
    REGARD_UNARY(copy, T, T, x)
    REGARD_UNARY(integer_from_real, T, int32_t, x)
    REGARD_UNARY(real_from_integer, int32_t, T, x)
    case Code::where:
      return choose<T>(i, f);
    case Code::read:
      return read<T>(i, f);
    default:
      return;
  }
}

inline void run_integer(const Instruction& i, Frame& f) {
  switch (i.code) {
    REGARD_BINARY(add_i, int32_t, int32_t, wrap_add(x, y))
    REGARD_BINARY(sub_i, int32_t, int32_t, wrap_sub(x, y))
    REGARD_BINARY(mul_i, int32_t, int32_t, wrap_mul(x, y))
    REGARD_BINARY(floor_div_i, int32_t, int32_t, floor_div_of(x, y))
    REGARD_BINARY(mod_i, int32_t, int32_t, mod_of(x, y))
    REGARD_BINARY(min_i, int32_t, int32_t, x < y ? x : y)
    REGARD_BINARY(max_i, int32_t, int32_t, x > y ? x : y)
    REGARD_BINARY(pow_i, int32_t, int32_t, pow_of(x, y))
    REGARD_BINARY(lt_i, int32_t, int32_t, x < y)
    REGARD_BINARY(le_i, int32_t, int32_t, x <= y)
    REGARD_BINARY(gt_i, int32_t, int32_t, x > y)
    REGARD_BINARY(ge_i, int32_t, int32_t, x >= y)
    REGARD_BINARY(eq_i, int32_t, int32_t, x == y)
    REGARD_BINARY(ne_i, int32_t, int32_t, x != y)
    REGARD_BINARY(and_i, int32_t, int32_t, x & y)
    REGARD_BINARY(or_i, int32_t, int32_t, x | y)
    REGARD_UNARY(not_i, int32_t, int32_t, x == 0)
    REGARD_UNARY(neg_i, int32_t, int32_t, wrap_sub(0, x))
    REGARD_UNARY(abs_i, int32_t, int32_t, x < 0 ? wrap_sub(0, x) : x)
    REGARD_UNARY(copy_i, int32_t, int32_t, x)
    case Code::where_i:
      return choose<int32_t>(i, f);
    case Code::read_i:
      return read<int32_t>(i, f);
    default:
      return;
  }
}

#undef REGARD_UNARY
#undef REGARD_BINARY

constexpr bool is_integer(Code code) {
  switch (code) {
    case Code::add_i:
    case Code::sub_i:
    case Code::mul_i:
    case Code::floor_div_i:
    case Code::mod_i:
    case Code::min_i:
    case Code::max_i:
    case Code::pow_i:
    case Code::lt_i:
    case Code::le_i:
    case Code::gt_i:
    case Code::ge_i:
    case Code::eq_i:
    case Code::ne_i:
    case Code::and_i:
    case Code::or_i:
    case Code::not_i:
    case Code::neg_i:
    case Code::abs_i:
    case Code::where_i:
    case Code::copy_i:
    case Code::read_i:
      return true;
    default:
      return false;
  }
}

template <class T>
void run(const Instruction* instructions, int64_t count, Frame& frame) {
  for (int64_t n = 0; n < count; ++n) {
    if (is_integer(instructions[n].code)) {
      run_integer(instructions[n], frame);
    } else {
      run_real<T>(instructions[n], frame);
    }
  }
}

// The tile program, one instruction at a time over all pairs of a chunk: one switch an instruction, then plain loops
// over lanes in cache. Registers that vary with the step alone are spread over the lanes row by row.
// Part of primitives.inl.

/// Rows of an argument as the result's loop walks them.
template <class D>
struct Argument {
  const D* data;
  int64_t step = 0;     // distance of rows
  bool spread = false;  // one value a row
  alignas(64) D row[kLanes];

  const D* at(int64_t s, int64_t lanes) {
    if (!spread) return data + s * step;
    const D value = data[s];
    for (int64_t l = 0; l < lanes; ++l) row[l] = value;
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
  argument.spread = e.pairs && r.shape == Shape::step;
  if (argument.spread) argument.data += e.first_step;
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
  if (!e.pairs) {  // kSteps values may exceed one row of lanes
    Out* out = result_of<Out>(i, f);
#pragma GCC ivdep
    for (int64_t l = 0; l < e.lanes; ++l) out[l] = function(a.data[l]);
    return;
  }
  for (int64_t s = 0; s < e.steps; ++s) {
    const In* x = a.at(s, e.lanes);
    Out* out = result_of<Out>(i, f) + s * kLanes;
#pragma GCC ivdep
    for (int64_t l = 0; l < e.lanes; ++l) out[l] = function(x[l]);
  }
}

template <class In, class Out, class F>
void binary(const Instruction& i, Frame& f, F function) {
  const Extent e = extent_of(i, f);
  Argument<In> a, b;
  bind(a, f, i.arg[0], e);
  bind(b, f, i.arg[1], e);
  for (int64_t s = 0; s < e.steps; ++s) {
    const In* x = e.pairs ? a.at(s, e.lanes) : a.data;
    const In* y = e.pairs ? b.at(s, e.lanes) : b.data;
    Out* out = result_of<Out>(i, f) + s * kLanes;
#pragma GCC ivdep
    for (int64_t l = 0; l < e.lanes; ++l) out[l] = function(x[l], y[l]);
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
    const int32_t* c = e.pairs ? condition.at(s, e.lanes) : condition.data;
    const D* x = e.pairs ? a.at(s, e.lanes) : a.data;
    const D* y = e.pairs ? b.at(s, e.lanes) : b.data;
    D* out = result_of<D>(i, f) + s * kLanes;
#pragma GCC ivdep
    for (int64_t l = 0; l < e.lanes; ++l) out[l] = c[l] != 0 ? x[l] : y[l];
  }
}

/// Elements at `offsets` of a tensor of E as D, 0 where `bad`. False when an int64 element does not fit 32 bits.
template <class E, class D>
bool gather(const Reading& reading, const int64_t* offsets, const int32_t* bad, D* out, int64_t lanes) {
  const E* data = static_cast<const E*>(reading.data);
  bool fine = true;
  for (int64_t l = 0; l < lanes; ++l) {
    if (bad != nullptr && bad[l] != 0) {
      out[l] = 0;
      continue;
    }
    const E value = data[offsets[l]];
    if constexpr (__is_same(E, int64_t) && __is_same(D, int32_t)) fine &= value == static_cast<int32_t>(value);
    out[l] = static_cast<D>(value);
  }
  return fine;
}

template <class D>
bool gather_any(const Reading& reading, const int64_t* offsets, const int32_t* bad, D* out, int64_t lanes) {
  switch (reading.element) {
    case 0:
      return gather<uint8_t, D>(reading, offsets, bad, out, lanes);
    case 1:
      return gather<int32_t, D>(reading, offsets, bad, out, lanes);
    case 2:
      return gather<int64_t, D>(reading, offsets, bad, out, lanes);
    case 3:
      return gather<float, D>(reading, offsets, bad, out, lanes);
    default:
      return gather<double, D>(reading, offsets, bad, out, lanes);
  }
}

/// Rows wider than one row of lanes (registers of steps) are read in parts.
template <class D>
void read_row(const Instruction& i, Frame& f, const int32_t* const* index, D* out, int32_t* bad, int64_t lanes) {
  Reading& reading = f.readings[i.reading];
  int64_t offsets[kLanes];
  for (int64_t l = 0; l < lanes; ++l) offsets[l] = 0;
  if (bad != nullptr) {
    for (int64_t l = 0; l < lanes; ++l) bad[l] = 0;
  }
  int32_t outside = 0;
  for (int k = 0; k < reading.rank; ++k) {
    const int64_t stride = reading.strides[k];
    for (int64_t l = 0; l < lanes; ++l) offsets[l] += index[k][l] * stride;
    if (bad == nullptr) continue;
    for (int64_t l = 0; l < lanes; ++l) {
      bad[l] |= (index[k][l] < 0) | (index[k][l] >= reading.sizes[k]);
      outside |= bad[l];
    }
  }
  f.marked |= outside != 0;
  reading.fits &= gather_any(reading, offsets, bad, out, lanes);
}

template <class D>
void read(const Instruction& i, Frame& f) {
  const Extent e = extent_of(i, f);
  Argument<int32_t> arguments[kRank];
  const int rank = f.readings[i.reading].rank;
  for (int k = 0; k < rank; ++k) bind(arguments[k], f, i.index[k], e);
  int32_t* bad = f.readings[i.reading].checked ? static_cast<int32_t*>(f.registers[i.bad].data) : nullptr;
  const int32_t* index[kRank];
  for (int64_t s = 0; s < e.steps; ++s) {
    for (int64_t part = 0; part < e.lanes; part += kLanes) {
      for (int k = 0; k < rank; ++k) index[k] = e.pairs ? arguments[k].at(s, e.lanes) : arguments[k].data + part;
      const int64_t at = s * kLanes + part;
      read_row(i, f, index, result_of<D>(i, f) + at, bad == nullptr ? nullptr : bad + at,
               e.lanes - part < kLanes ? e.lanes - part : kLanes);
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

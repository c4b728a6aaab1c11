#pragma once

/// What the driver and the instruction-set sources share: plain data and a table of functions.
///
/// A *tile* is a rectangle of pairs, `steps` x `lanes`. The lanes lie contiguously and fill vector registers; the
/// steps are the rows of the tile. Here the lanes are queries and the steps are keys, forward and backward. So whatever
/// belongs to one query (maximum, sum, log-sum-exp) is a vector, no sum runs across a vector, and keys and values are
/// read in place, element by element, through their strides. (Programs alone run the other way round as well: with few
/// queries the keys are the lanes; see few_queries_kernels.h.)
///
/// Only <cstdint> may be included here: sources compiled for one instruction set must not emit shared inline
/// functions (std::vector, std::string), or the linker may pick that copy for every processor.
#include <cstdint>

namespace regard::kernels {

/// Lanes of a tile are cut to multiples of 16, the floats of the widest vector, so that no loop has a scalar tail:
/// a pair's bits do not depend on where in a tile it lies.
constexpr int64_t kLaneUnit = 16;
/// Most lanes: four of the widest vectors, the widest product tile that fits 32 registers.
constexpr int64_t kLanes = 64;
/// Most steps: a float tile is then 64 KiB, which stays in the second cache level with its operands.
constexpr int64_t kSteps = 256;
/// The expression program runs on this many steps at once: a register of it is then 4 KiB of floats.
constexpr int64_t kChunk = 16;
/// Captured tensors have at most this many dimensions.
constexpr int kRank = 8;

/// What a register of the program varies with. Scalars and lanes are stored alike: kSteps values, scalars repeated.
enum class Shape : uint8_t { scalar, lane, step, pair };

/// Operations of the tile program. Booleans are integers 0 and 1. `_i`: of integers (int32_t), otherwise of reals (T).
enum class Code : uint8_t {
  add,
  sub,
  mul,
  div,
  floor_div,
  mod,
  min,
  max,
  pow,
  add_i,
  sub_i,
  mul_i,
  floor_div_i,
  mod_i,
  min_i,
  max_i,
  pow_i,
  lt,
  le,
  gt,
  ge,
  eq,
  ne,
  lt_i,
  le_i,
  gt_i,
  ge_i,
  eq_i,
  ne_i,
  and_i,
  or_i,
  not_i,
  neg,
  abs,
  floor,
  exp,
  log,
  tanh,
  sigmoid,
  sqrt,
  cos,
  sin,
  neg_i,
  abs_i,
  where,
  where_i,
  real_from_integer,
  integer_from_real,
  copy,
  copy_i,  ///< also spreads a step, lane or scalar over pairs
  read,
  read_i,  ///< an element of a captured tensor
};

/// A captured tensor as the program reads it. `element`: bool, int32, int64, float32, float64 = 0..4.
struct Reading {
  const void* data = nullptr;
  int32_t element = 0;
  int32_t rank = 0;
  bool checked = false;  ///< an index may lie outside: test each, give 0 there and mark the pair
  bool fits = true;      ///< (result) false once an int64 element did not fit 32 bits
  int64_t sizes[kRank] = {}, strides[kRank] = {};
};

struct Instruction {
  Code code;
  Shape shape;         ///< of the result
  int32_t result = 0;  ///< register
  int32_t arg[3] = {-1, -1, -1};
  int32_t reading = -1;  ///< read: position in Frame::readings; its indices are `index`
  int32_t bad = -1;      ///< read: register of marks (integer) of pairs whose index lies outside
  int32_t index[kRank] = {};
};

struct Register {
  void* data = nullptr;
  Shape shape = Shape::scalar;
};

/// The registers of one thread's run of a program.
struct Frame {
  Register* registers = nullptr;
  Reading* readings = nullptr;
  int64_t lanes = 0;       ///< of this tile, a multiple of kLaneUnit
  int64_t steps = 0;       ///< of this chunk
  int64_t first_step = 0;  ///< of this chunk in its block
  bool marked = false;     ///< (result) a checked read found an index outside
};

/// A result of the program over pairs: `step` is the distance between steps, kLanes wide rows or 0 (the same for all).
template <class T>
struct View {
  const T* data = nullptr;
  int64_t step = 0;
  explicit operator bool() const { return data != nullptr; }
};

/// c = (mode) a b: c (rows x lanes), a (rows x depth) read by strides, b (depth x lanes).
template <class T>
struct Product {
  T* c = nullptr;
  const T* a = nullptr;
  const T* b = nullptr;
  int64_t rows = 0, depth = 0, lanes = 0;  ///< lanes: a multiple of kLaneUnit
  int64_t a_row = 0, a_depth = 0;          ///< strides of a
  int64_t b_row = kLanes, c_row = kLanes;  ///< distances of rows
  enum Mode : uint8_t { store, add, rescale } mode = store;
  const T* factor = nullptr;  ///< rescale: c = factor[lane] c + a b
  T* maximum = nullptr;       ///< store: maximum[lane] is raised to the largest of the lane, or null
};

/// Which pairs a masked product adds: mask[row * r + depth * d + lane * l] != 0.
struct PairMask {
  const int32_t* mask = nullptr;
  int64_t row = 0, depth = 0, lane = 0;
};

/// `count` rows of an array of `width` columns against the columns of its transpose, (width x lanes), rows kLanes
/// apart.
template <class T>
struct Transpose {
  T* array = nullptr;  ///< pack only reads it
  T* packed = nullptr;
  int64_t row = 0, column = 1;  ///< strides of the array
  int64_t count = 0, width = 0;
  T scale = 1;                ///< pack: on every element
  const T* factor = nullptr;  ///< unpack: on every row, or null
  bool add = false;           ///< unpack: adds to the array
};

/// How many normalizers there are; they are numbered as Normalizer::Kind is.
constexpr int kNormalizers = 7;

/// The state of the lanes of one tile, in the units of the scores (see Absorb). What its members hold:
///
///                        maximum              sum                                  factor          square
///     softmax, signed    of the scores        exp2(unit (|s| - maximum)), counted  rescales o
///     sum                                     max(s, 0), counted
///     relu, identity                          1, kept
///     z_score            their mean           1, counted                           old - new mean  (s - mean)^2
template <class T>
struct RowState {
  T maximum[kLanes];  ///< -inf before the first score; 0 where there is none
  T sum[kLanes];
  T block_maximum[kLanes];  ///< of the scores of the block being absorbed
  T factor[kLanes];         ///< softmax: exp2(unit (old maximum - new maximum))
  T square[kLanes];
  T residual[kLanes];  ///< z_score: what rounding took off the mean
};

/// One block of scores absorbed: tile becomes the weights of the kept pairs, not yet divided. Softmax: exp2(unit (score
/// - maximum)) weight.
template <class T>
struct Absorb {
  T* tile = nullptr;                 ///< scores, -inf where the pair is not live
  const T* weight = nullptr;         ///< tile of weights, or null for 1
  const int32_t* keep = nullptr;     ///< tile, or null when all pairs are kept or scores say it all
  const int32_t* counted = nullptr;  ///< tile, or null when kept pairs are the counted ones
  T unit = 1;                        ///< log2(e) for natural scores, 1 for scores in base 2
  int64_t steps = 0, lanes = 0;
  RowState<T>* state = nullptr;
  T* kept = nullptr;  ///< z_score: tile, [keep] weight is written
};

/// Chain rule of one chunk, by the final log-sum-exp in the units of the scores:
///     p = exp2(unit (s - lse)), pw = [keep] p w, ds = pw dp - [counted] p delta, dw = [keep] p dp
/// with delta = rowsum(grad_o o) - grad_lse.
template <class T>
struct Chain {
  View<T> score, weight;        ///< weight: none for 1
  View<int32_t> keep, counted;  ///< none: all pairs; counted none: as keep
  const T* dp = nullptr;        ///< <grad_o_i, v_j>, rows kLanes apart
  const T* lse = nullptr;       ///< a lane; +inf for rows without keys
  const T* delta = nullptr;     ///< a lane
  T unit = 1;                   ///< as in Absorb
  T* pw = nullptr;              ///< may be the scores or dp themselves
  T* ds = nullptr;              ///< may be dp itself
  T* dw = nullptr;              ///< or null
  int64_t steps = 0, lanes = 0;
  const T* rate = nullptr;   ///< a lane; see normalizers.inl for what each normalizer reads of lse, delta and these
  const T* slope = nullptr;  ///< a lane
};

/// out = [live] (ds f + dw g): the gradient of a dot or a capture read from d score and d weight of it.
template <class T>
struct Combine {
  const T* ds = nullptr;
  const T* dw = nullptr;
  View<T> f, g;        ///< none: 0
  View<int32_t> live;  ///< none: all
  T* out = nullptr;
  int64_t steps = 0, lanes = 0;
};

/// What one instruction set provides.
template <class T>
struct Primitives {
  void (*product)(const Product<T>&);
  /// The same over the pairs of the mask only: what is left out may be NaN. Bits are those of `product` wherever
  /// nothing but finite values times 0 are left out.
  void (*masked_product)(const Product<T>&, const PairMask&);
  bool (*finite)(const T* data, int64_t rows, int64_t columns, int64_t row, int64_t column);
  /// Sum of a[d] b[d]; where b is exactly 0 the product counts as 0 whatever a is.
  T (*row_sum)(const T* a, int64_t a_column, const T* b, int64_t b_column, int64_t width);
  void (*pack)(const Transpose<T>&);    ///< packed = scale array^T, zero in the lanes from count to the next kLaneUnit
  void (*unpack)(const Transpose<T>&);  ///< array (+)= factor packed^T
  void (*run)(const Instruction* instructions, int64_t count, Frame& frame);
  /// tile = live ? score : -inf, and the maximum of each lane raised.
  void (*mask_scores)(T* tile, View<T> score, View<int32_t> live, int64_t steps, int64_t lanes, T* maximum);
  /// mask (kLanes apart) = low[lane] <= first + step <= high[lane]
  void (*band)(int32_t* mask, const int32_t* low, const int32_t* high, int32_t first, int64_t steps, int64_t lanes);
  void (*combine)(const Combine<T>&);
  /// sums += factor[lane] values, both (rows x lanes).
  void (*add_scaled)(T* sums, const T* values, const T* factor, int64_t rows, int64_t lanes);
  /// sums[lane] += kept slope over the steps, of pairs whose kept is not 0.
  void (*add_kept)(T* sums, const T* kept, const T* slope, int64_t steps, int64_t lanes);
  void (*absorb[kNormalizers])(const Absorb<T>&);
  void (*chain[kNormalizers])(const Chain<T>&);
};

/// The primitives of the chosen instruction set.
template <class T>
const Primitives<T>& primitives();

}  // namespace regard::kernels

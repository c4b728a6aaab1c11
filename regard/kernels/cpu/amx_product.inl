// Products of tiles. Included by amx_bf16.cpp.
//
// Eight tile registers: 2 x 2 accumulators (0 to 3), two tiles of A (4, 5), two of B (6, 7). So each loaded tile is
// used twice, a load for every product; a product occupies the unit for 16 cycles, a load from the second cache level
// takes about 24 and four independent accumulators cover the 52 cycles from a product to its sum.
//
// Loads and stores are written as assembly: the compiler's own intrinsics for loads do not say that they read memory,
// so stores before them could be moved behind.

#define REGARD_LOAD(tile, from, stride) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"(static_cast<int64_t>(stride)) : "memory")
#define REGARD_STORE(tile, to, stride) \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"(static_cast<int64_t>(stride)) : "memory")
#define REGARD_ZERO(tile) asm volatile("tilezero %%tmm" #tile ::)
#define REGARD_MULTIPLY(c, a, b) asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)

/// All eight tiles are 16 rows of 64 bytes.
void begin() {
  struct alignas(64) Configuration {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } configuration;
  for (int t = 0; t < 8; ++t) {
    configuration.row_bytes[t] = 64;
    configuration.rows[t] = 16;
  }
  asm volatile("ldtilecfg %0" ::"m"(configuration));
}

/// Gives the tiles back: a thread that holds them pays for 8 KiB more at every switch.
void end() { asm volatile("tilerelease" ::); }

/// One block of `Rows` x `Columns` accumulators.
template <int Rows, int Columns>
void multiply_block(const TileProduct& p, const char* a, const char* b, char* c) {
  char* c10 = c + p.c_row;
  char* c01 = c + p.c_column;
  char* c11 = c10 + p.c_column;
  if (p.add) {
    REGARD_LOAD(0, c, 64);
    if constexpr (Columns > 1) REGARD_LOAD(1, c01, 64);
    if constexpr (Rows > 1) REGARD_LOAD(2, c10, 64);
    if constexpr (Rows > 1 && Columns > 1) REGARD_LOAD(3, c11, 64);
  } else {
    REGARD_ZERO(0);
    if constexpr (Columns > 1) REGARD_ZERO(1);
    if constexpr (Rows > 1) REGARD_ZERO(2);
    if constexpr (Rows > 1 && Columns > 1) REGARD_ZERO(3);
  }
  for (int64_t d = 0; d < p.depth; ++d, a += p.a_depth, b += p.b_depth) {
    REGARD_LOAD(6, b, 64);
    REGARD_LOAD(4, a, p.a_row);
    REGARD_MULTIPLY(0, 4, 6);
    if constexpr (Columns > 1) {
      REGARD_LOAD(7, b + p.b_tile, 64);
      REGARD_MULTIPLY(1, 4, 7);
    }
    if constexpr (Rows > 1) {
      REGARD_LOAD(5, a + p.a_tile, p.a_row);
      REGARD_MULTIPLY(2, 5, 6);
      if constexpr (Columns > 1) REGARD_MULTIPLY(3, 5, 7);
    }
  }
  REGARD_STORE(0, c, 64);
  if constexpr (Columns > 1) REGARD_STORE(1, c01, 64);
  if constexpr (Rows > 1) REGARD_STORE(2, c10, 64);
  if constexpr (Rows > 1 && Columns > 1) REGARD_STORE(3, c11, 64);
}

template <int Rows>
void multiply_rows(const TileProduct& p, const char* a, char* c) {
  const char* b = static_cast<const char*>(p.b);
  int64_t j = 0;
  for (; j + 2 <= p.columns; j += 2, b += 2 * p.b_tile, c += 2 * p.c_column) multiply_block<Rows, 2>(p, a, b, c);
  if (j < p.columns) multiply_block<Rows, 1>(p, a, b, c);
}

void multiply(const TileProduct& p) {
  const char* a = static_cast<const char*>(p.a);
  char* c = reinterpret_cast<char*>(p.c);
  int64_t i = 0;
  for (; i + 2 <= p.rows; i += 2, a += 2 * p.a_tile, c += 2 * p.c_row) multiply_rows<2>(p, a, c);
  if (i < p.rows) multiply_rows<1>(p, a, c);
}

/// A product cut into steps, each one tile of depth for 2 x 2 accumulators: 16 instructions that the tile unit works
/// off on its own while vector instructions go on. Odd rows or columns have no such steps.
class Beside {
 public:
  explicit Beside(const TileProduct* p) : p_(p) {
    if (p == nullptr) return;
    if (p->rows % 2 != 0 || p->columns % 2 != 0 || p->depth == 0) {
      multiply(*p);
      return;
    }
    steps_ = p->rows / 2 * (p->columns / 2) * p->depth;
    begin_block();
  }

  int64_t steps() const { return steps_; }

  void step() {
    if (steps_ == 0) return;
    if (depth_ == 0) clear();
    REGARD_LOAD(6, b_, 64);
    REGARD_LOAD(4, a_, p_->a_row);
    REGARD_MULTIPLY(0, 4, 6);
    REGARD_LOAD(7, b_ + p_->b_tile, 64);
    REGARD_MULTIPLY(1, 4, 7);
    REGARD_LOAD(5, a_ + p_->a_tile, p_->a_row);
    REGARD_MULTIPLY(2, 5, 6);
    REGARD_MULTIPLY(3, 5, 7);
    a_ += p_->a_depth;
    b_ += p_->b_depth;
    --steps_;
    if (++depth_ == p_->depth) end_block();
  }

  void finish() {
    while (steps_ > 0) step();
  }

 private:
  void begin_block() {
    depth_ = 0;
    a_ = static_cast<const char*>(p_->a) + row_ * p_->a_tile;
    b_ = static_cast<const char*>(p_->b) + column_ * p_->b_tile;
    c_ = reinterpret_cast<char*>(p_->c) + row_ * p_->c_row + column_ * p_->c_column;
  }

  void clear() {
    if (p_->add) {
      REGARD_LOAD(0, c_, 64);
      REGARD_LOAD(1, c_ + p_->c_column, 64);
      REGARD_LOAD(2, c_ + p_->c_row, 64);
      REGARD_LOAD(3, c_ + p_->c_row + p_->c_column, 64);
    } else {
      REGARD_ZERO(0);
      REGARD_ZERO(1);
      REGARD_ZERO(2);
      REGARD_ZERO(3);
    }
  }

  void end_block() {
    REGARD_STORE(0, c_, 64);
    REGARD_STORE(1, c_ + p_->c_column, 64);
    REGARD_STORE(2, c_ + p_->c_row, 64);
    REGARD_STORE(3, c_ + p_->c_row + p_->c_column, 64);
    column_ += 2;
    if (column_ == p_->columns) {
      column_ = 0;
      row_ += 2;
    }
    begin_block();
  }

  const TileProduct* p_;
  const char *a_ = nullptr, *b_ = nullptr;
  char* c_ = nullptr;
  int64_t row_ = 0, column_ = 0, depth_ = 0, steps_ = 0;
};

#undef REGARD_LOAD
#undef REGARD_STORE
#undef REGARD_ZERO
#undef REGARD_MULTIPLY

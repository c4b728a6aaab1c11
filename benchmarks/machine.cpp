// What this machine can do at most: float32 FMA, bfloat16 dot products, and a read-only sum of memory.
//
//   regard_machine [--threads N] [--seconds S]     prints one JSON object
//   regard_machine --serve [--threads N]           answers lines of the standard input, one line each:
//       fma SECONDS      GFLOP/s of all threads
//       read BYTES       GB/s of a sum over the next BYTES of a buffer beyond the last-level cache
//
// The loops live in registers (FMA, dot products) or only read (the sum): nothing faster can be written with these
// instructions, so a kernel's share of them says what is left. Served, the probe runs between two timings of a
// benchmark and sees the clock and the neighbors that they see.

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// Keeps a value that nothing reads from being optimized away.
template <typename T>
void keep(const T& value) {
  asm volatile("" : : "m"(value) : "memory");
}

// ---- loops in registers: each runs `rounds` rounds and returns the floating-point operations it did -----------------

using Loop = double (*)(int64_t rounds);

#if defined(__x86_64__)

// 24 chains: latency 4 times 2 units asks for 8, and register tiles of a product have as many.
__attribute__((target("avx512f"))) double fma_avx512(int64_t rounds) {
  __m512 sums[24];
#pragma GCC unroll 24
  for (int i = 0; i < 24; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 24
    for (int i = 0; i < 24; ++i) sums[i] = _mm512_fmadd_ps(sums[i], a, b);
  }
#pragma GCC unroll 24
  for (int i = 0; i < 24; ++i) keep(sums[i]);
  return static_cast<double>(rounds) * 24 * 16 * 2;
}

__attribute__((target("avx2,fma"))) double fma_avx2(int64_t rounds) {
  __m256 sums[12];
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) sums[i] = _mm256_set1_ps(static_cast<float>(i));
  const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) sums[i] = _mm256_fmadd_ps(sums[i], a, b);
  }
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) keep(sums[i]);
  return static_cast<double>(rounds) * 12 * 8 * 2;
}

__attribute__((target("avx512f,avx512bf16"))) double bf16_dot(int64_t rounds) {
  __m512 sums[24];
#pragma GCC unroll 24
  for (int i = 0; i < 24; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512bh a = (__m512bh)_mm512_set1_epi16(0x3f80), b = (__m512bh)_mm512_set1_epi16(0x3c00);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 24
    for (int i = 0; i < 24; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], a, b);
  }
#pragma GCC unroll 24
  for (int i = 0; i < 24; ++i) keep(sums[i]);
  return static_cast<double>(rounds) * 24 * 32 * 2;
}

// Four accumulator tiles, two tiles of either operand: the register tile of a product by AMX.
__attribute__((target("amx-tile,amx-bf16"))) double bf16_amx(int64_t rounds) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } layout;
  alignas(64) uint16_t ones[16 * 32];
  std::fill(std::begin(ones), std::end(ones), uint16_t{0x3f80});
  _tile_loadconfig(&layout);
  _tile_loadd(4, ones, 64);
  _tile_loadd(5, ones, 64);
  _tile_loadd(6, ones, 64);
  _tile_loadd(7, ones, 64);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t r = 0; r < rounds; ++r) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  alignas(64) float out[16 * 16];
  _tile_stored(0, out, 64);
  keep(out);
  _tile_release();
  return static_cast<double>(rounds) * 4 * (16 * 16 * 32 * 2);
}

bool cpu_has(const char* flag) {
  static const std::string flags = [] {
    std::string text;
    if (std::FILE* file = std::fopen("/proc/cpuinfo", "r")) {
      char line[8192];
      while (std::fgets(line, sizeof line, file))
        if (std::strncmp(line, "flags", 5) == 0) {
          text = std::string(" ") + line;
          break;
        }
      std::fclose(file);
    }
    std::replace_if(
        text.begin(), text.end(), [](char c) { return c == '\n' || c == '\t'; }, ' ');
    return text;
  }();
  return flags.find(std::string(" ") + flag + " ") != std::string::npos;
}

// The kernel hands out the tile registers on request only (arch_prctl ARCH_REQ_XCOMP_PERM of XFEATURE_XTILEDATA).
bool amx_permitted() { return cpu_has("amx_bf16") && syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

#endif

// 16-byte vectors of the compiler: NEON on ARM, SSE2 on an old x86 processor (which has no FMA).
double fma_portable(int64_t rounds) {
  typedef float Vector __attribute__((vector_size(16)));
  Vector sums[12];
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) sums[i] = Vector{} + static_cast<float>(i);
  const Vector a = Vector{} + 0.999f, b = Vector{} + 0.001f;
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) sums[i] = sums[i] * a + b;
  }
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) keep(sums[i]);
  return static_cast<double>(rounds) * 12 * 4 * 2;
}

struct Isa {
  std::string name = "baseline";
  Loop fma = fma_portable, dot = nullptr, amx = nullptr;
};

Isa detect() {
  Isa isa;
#if defined(__x86_64__)
  if (cpu_has("avx2") && cpu_has("fma")) isa.name = "avx2", isa.fma = fma_avx2;
  if (cpu_has("avx512f")) isa.name = "avx512", isa.fma = fma_avx512;
  if (cpu_has("avx512_bf16")) isa.name += "+bf16", isa.dot = bf16_dot;
  if (amx_permitted()) isa.name += "+amx", isa.amx = bf16_amx;
#elif defined(__aarch64__)
  isa.name = "neon";
#endif
  return isa;
}

// ---- the sum
// ---------------------------------------------------------------------------------------------------------

/// Sum of `count` floats with 8 accumulators of 64 bytes; count is a multiple of 128.
template <int>
__attribute__((always_inline)) inline void sum_lines(const float* data, int64_t count) {
  typedef float Line __attribute__((vector_size(64), aligned(4)));
  Line sums[8] = {};
  for (int64_t i = 0; i < count; i += 128) {
#pragma GCC unroll 8
    for (int a = 0; a < 8; ++a) sums[a] += *reinterpret_cast<const Line*>(data + i + 16 * a);
  }
#pragma GCC unroll 8
  for (int a = 0; a < 8; ++a) keep(sums[a]);
}

using Sum = void (*)(const float*, int64_t);
void sum_portable(const float* data, int64_t count) { sum_lines<0>(data, count); }
#if defined(__x86_64__)
__attribute__((target("avx512f"))) void sum_avx512(const float* data, int64_t count) { sum_lines<1>(data, count); }
__attribute__((target("avx2"))) void sum_avx2(const float* data, int64_t count) { sum_lines<2>(data, count); }
#endif

Sum best_sum() {
#if defined(__x86_64__)
  if (cpu_has("avx512f")) return sum_avx512;
  if (cpu_has("avx2")) return sum_avx2;
#endif
  return sum_portable;
}

// ---- threads
// ---------------------------------------------------------------------------------------------------------

/// Gives thread t a core to itself: threads that yield to each other may stay on one core for a whole measurement.
void pin(int t) {
  static const cpu_set_t allowed = [] {  // of the process, before any thread of it is pinned
    cpu_set_t set;
    CPU_ZERO(&set);
    sched_getaffinity(0, sizeof set, &set);
    return set;
  }();
  if (CPU_COUNT(&allowed) == 0) return;
  cpu_set_t one;
  CPU_ZERO(&one);
  int wanted = t % CPU_COUNT(&allowed);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &allowed) && wanted-- == 0) CPU_SET(cpu, &one);
  sched_setaffinity(0, sizeof one, &one);  // 0: the calling thread
}

/// Threads that sleep between jobs. A job's time runs from the moment when all are awake to the last one's end.
class Crew {
 public:
  explicit Crew(int size) : size_(size) {
    pin(0);
    for (int t = 1; t < size; ++t) threads_.emplace_back([this, t] { work(t); });
  }
  ~Crew() {
    run([](int) {}, true);
    for (std::thread& thread : threads_) thread.join();
  }
  int size() const { return size_; }

  double run(const std::function<void(int)>& job, bool last = false) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      stop_ = last;
      awake_ = 1;
      left_ = size_;
      ++generation_;
    }
    wake_.notify_all();
    while (awake_ < size_) std::this_thread::yield();
    const double start = now();
    go_ = generation_.load();
    job(0);
    --left_;
    while (left_ > 0) std::this_thread::yield();
    return now() - start;
  }

 private:
  void work(int t) {
    pin(t);
    for (int64_t seen = 0;;) {
      bool last;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_ != seen; });
        seen = generation_.load();
        last = stop_;
      }
      ++awake_;
      while (go_ != seen) std::this_thread::yield();
      (*job_)(t);
      --left_;
      if (last) return;
    }
  }

  const int size_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  const std::function<void(int)>* job_ = nullptr;
  bool stop_ = false;
  std::atomic<int> awake_{0}, left_{0};
  std::atomic<int64_t> generation_{0}, go_{0};
};

/// GFLOP/s of a loop on all threads, over about `seconds`.
double gflops(Crew& crew, Loop loop, double seconds) {
  const int64_t sample = 100000;
  double start = now();
  loop(sample);
  start = now();
  loop(sample);
  const int64_t rounds = static_cast<int64_t>(static_cast<double>(sample) * seconds / (now() - start)) + 1;
  std::vector<double> done(static_cast<size_t>(crew.size()) * 16);  // a cache line a thread
  const double time = crew.run([&](int t) { done[static_cast<size_t>(t) * 16] = loop(rounds); });
  double total = 0;
  for (const double operations : done) total += operations;
  return total / time * 1e-9;
}

double best_gflops(int threads, Loop loop, double seconds) {
  if (!loop) return 0;
  Crew crew(threads);
  double best = 0;
  for (int i = 0; i < 5; ++i) best = std::max(best, gflops(crew, loop, seconds / 5));
  return best;
}

// ---- memory
// ----------------------------------------------------------------------------------------------------------

int64_t last_level_cache() {
  int64_t bytes = 0;
  for (int index = 0; index < 8; ++index) {
    const std::string path = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/size";
    if (std::FILE* file = std::fopen(path.c_str(), "r")) {
      long size = 0;
      char unit = 0;
      if (std::fscanf(file, "%ld%c", &size, &unit) >= 1)
        bytes = std::max(bytes, static_cast<int64_t>(size) << (unit == 'M' ? 20 : unit == 'K' ? 10 : 0));
      std::fclose(file);
    }
  }
  return bytes > 0 ? bytes : int64_t{32} << 20;
}

/// 1.5 times the last-level cache, within a quarter of the memory that is free.
int64_t buffer_bytes() {
  const int64_t free_bytes = static_cast<int64_t>(sysconf(_SC_AVPHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  return std::max(int64_t{64} << 20, std::min(last_level_cache() * 3 / 2, free_bytes / 4)) / 512 * 512;
}

/// A buffer beyond the last-level cache, summed a window at a time.
class Reader {
 public:
  explicit Reader(Crew& crew) : crew_(crew), bytes_(buffer_bytes()), sum_(best_sum()) {
    data_.reset(static_cast<float*>(std::aligned_alloc(512, static_cast<size_t>(bytes_))));
    crew_.run([&](int t) {
      const auto [begin, end] = part(0, bytes_, t);
      std::fill(data_.get() + begin / 4, data_.get() + end / 4, 1.0f);
    });
  }
  int64_t bytes() const { return bytes_; }

  double gbps(int64_t window) {
    window = std::clamp(window / 512 * 512, int64_t{512} * crew_.size(), bytes_);
    if (next_ + window > bytes_) next_ = 0;
    const int64_t first = next_;
    next_ += window;
    const double time = crew_.run([&](int t) {
      const auto [begin, end] = part(first, window, t);
      sum_(data_.get() + begin / 4, (end - begin) / 4);
    });
    return static_cast<double>(window) / time * 1e-9;
  }

 private:
  struct Part {
    int64_t begin, end;
  };
  Part part(int64_t first, int64_t window, int t) const {
    const int64_t lines = window / 512, n = crew_.size();
    return {first + lines * t / n * 512, first + lines * (t + 1) / n * 512};
  }
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  Crew& crew_;
  int64_t bytes_, next_ = 0;
  Sum sum_;
  std::unique_ptr<float, Free> data_;
};

double best_gbps(int threads) {
  Crew crew(threads);
  Reader reader(crew);
  double best = 0;
  for (int i = 0; i < 3; ++i) best = std::max(best, reader.gbps(reader.bytes()));
  return best;
}

void print(const Isa& isa, int threads, double seconds) {
  std::printf("{\"isa\": \"%s\", \"threads\": %d, \"cores\": %u,\n", isa.name.c_str(), threads,
              std::thread::hardware_concurrency());
  std::printf(" \"fma_gflops\": %.1f, \"fma_gflops_one\": %.1f,\n", best_gflops(threads, isa.fma, seconds),
              best_gflops(1, isa.fma, seconds));
  std::printf(" \"bf16_amx_gflops\": %.1f, \"bf16_amx_gflops_one\": %.1f,\n", best_gflops(threads, isa.amx, seconds),
              best_gflops(1, isa.amx, seconds));
  std::printf(" \"bf16_dot_gflops\": %.1f, \"bf16_dot_gflops_one\": %.1f,\n", best_gflops(threads, isa.dot, seconds),
              best_gflops(1, isa.dot, seconds));
  std::printf(" \"read_gbps\": %.2f, \"read_gbps_one\": %.2f,\n", best_gbps(threads), best_gbps(1));
  std::printf(" \"last_level_cache\": %lld, \"read_bytes\": %lld}\n", static_cast<long long>(last_level_cache()),
              static_cast<long long>(buffer_bytes()));
}

void serve(const Isa& isa, int threads) {
  Crew crew(threads);
  std::unique_ptr<Reader> reader;  // made when first asked for: it is large
  char word[16];
  double amount = 0;
  while (std::scanf("%15s %lf", word, &amount) == 2) {
    double answer = 0;
    if (std::strcmp(word, "fma") == 0) answer = gflops(crew, isa.fma, amount);
    if (std::strcmp(word, "read") == 0) {
      if (!reader) reader = std::make_unique<Reader>(crew);
      answer = reader->gbps(static_cast<int64_t>(amount));
    }
    std::printf("%.4f\n", answer);
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  double seconds = 0.5;
  bool served = false;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const bool has_value = i + 1 < argc;
    if (word == "--serve") {
      served = true;
    } else if (word == "--threads" && has_value) {
      threads = std::atoi(argv[++i]);
    } else if (word == "--seconds" && has_value) {
      seconds = std::atof(argv[++i]);
    } else {
      std::fprintf(stderr, "[regard_machine] expected --threads N, --seconds S or --serve; found '%s'\n", argv[i]);
      return 2;
    }
  }
  if (threads < 1 || seconds <= 0) {
    std::fprintf(stderr, "[regard_machine] expected threads >= 1 and seconds > 0; found %d and %g\n", threads, seconds);
    return 2;
  }
  const Isa isa = detect();
  served ? serve(isa, threads) : print(isa, threads, seconds);
  return 0;
}

// Whether AMX runs a call, and what forward and backward share.
#include "regard/kernels/cpu/amx.h"

#include "regard/kernels/cpu/amx_call.h"
#include "regard/kernels/cpu/checks.h"
#include "regard/kernels/cpu/isa.h"
#include "regard/kernels/cpu/program_cache.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#define REGARD_AMX 1
#endif

namespace regard::kernels {
namespace {

#ifdef REGARD_AMX
bool processor_has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool tiles = (d >> 24 & 1) != 0 && (d >> 22 & 1) != 0;  // AMX-TILE and AMX-BF16
  if (!tiles || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return false;
  return (a >> 5 & 1) != 0;  // AVX512_BF16
}

/// Linux gives the 8 KiB of tile registers to processes that ask; threads made later inherit the permission, and so
/// do those that exist.
bool ask_for_tiles() {
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}
#endif

}  // namespace

bool amx_usable() {
#ifdef REGARD_AMX
  static const bool usable = amx_kernels() != nullptr && processor_has_amx() && ask_for_tiles();
  return usable;
#else
  return false;
#endif
}

bool amx_present() { return isa() == "amx"; }

std::string amx_refusal(const AmxCall& call) {
  if (!amx_present()) return "no AMX";
  const AttentionSpec& spec = *call.spec;
  const std::string reason = softmax_refusal(spec);
  if (!reason.empty()) return reason;
  if (spec.normalizer.sinks) return "sinks";
  const PairExpressions pairs = expressions_of(spec);
  if (pairs.weight.defined()) return "a weight";
  if (pairs.counted.pointer() != pairs.keep.pointer()) return "counted pairs other than the kept ones";
  static const Expr plain = scale() * dot(), swapped = dot() * scale();
  if (!same(pairs.score, plain) && !same(pairs.score, swapped)) return "an expression";
  if (!pairs.keep.is_constant(1) && !is_causal(pairs.keep)) return "a mask other than causal";
  return "";
}

bool is_causal(const Expr& keep) {
  static const Expr above = masks::causal(), below = key() <= query();
  return same(keep, above) || same(keep, below);
}

AmxReach::AmxReach(const AmxCall& call) : offset(call.query_offset) {
  const PairExpressions pairs = expressions_of(*call.spec);
  causal = !pairs.keep.is_constant(1);
  keys = causal ? std::clamp<int64_t>(call.M + offset, 0, call.N) : call.N;
  first_query = keys == 0 ? call.M : causal ? std::clamp<int64_t>(-offset, 0, call.M) : 0;
}

void AmxReach::limits(int32_t* limit, int64_t lanes, int64_t first, int64_t count, int64_t key, int64_t most) const {
  for (int64_t l = 0; l < lanes; ++l) {
    const int64_t here = seen(first + std::min(l, count - 1)) - key;
    limit[l] = static_cast<int32_t>(std::clamp<int64_t>(here, 0, most));
  }
}

RowTiles RowTiles::of(const Array4<const bfloat16>& x, int64_t batch, int64_t head, int64_t first, int64_t count,
                      int64_t length, int64_t width, char* room) {
  RowTiles tiles;
  const uint16_t* data = bits_at(x, batch, head, first);
  const int64_t bytes = sizeof(bfloat16);
  if (x.column == 1 && width % kTileDepth == 0 && first + round_up(count, kTileDepth) <= length) {
    tiles.data = data;
    tiles.row = x.row * bytes;
    tiles.tile = kTile * tiles.row;
    tiles.depth = 64;
    return tiles;
  }
  TilePack pack;
  pack.packing = Packing::rows;
  pack.data = data;
  pack.row = x.row;
  pack.column = x.column;
  pack.rows = count;
  pack.columns = width;
  pack.out = room;
  pack.row_tile = ceil_div(width, kTileDepth) * kTileBytes;
  pack.column_tile = kTileBytes;
  amx_kernels()->pack(pack);
  tiles.data = room;
  tiles.tile = pack.row_tile;
  tiles.depth = kTileBytes;
  return tiles;
}

}  // namespace regard::kernels

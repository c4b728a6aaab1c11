// The primitives of bfloat16 attention for AMX (tile, bf16) with AVX-512 (F, BW, DQ, VL, BF16); see amx_tile.h.
//
// Everything has internal linkage except the function that gives the table, for the reasons given in primitives.inl.
#include "regard/kernels/cpu/amx_tile.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
// GCC 12 takes the undefined operands inside its own intrinsics for mistakes.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

namespace regard::kernels {
namespace {

#include "regard/kernels/cpu/amx_product.inl"
// the others use none of it, but transposes come before what writes by them
#include "regard/kernels/cpu/amx_pack.inl"
#include "regard/kernels/cpu/amx_pointwise.inl"

constexpr AmxKernels table{begin, end, multiply, pack, finite, row_dots, absorb, chain, write};

}  // namespace

const AmxKernels* amx_kernels() { return &table; }

}  // namespace regard::kernels
#else
namespace regard::kernels {
const AmxKernels* amx_kernels() { return nullptr; }
}  // namespace regard::kernels
#endif

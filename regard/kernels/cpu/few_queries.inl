// The few-query primitives for one instruction set. Included once by each few_queries_*.cpp, which defines REGARD_ISA
// (the namespace) and REGARD_VECTOR_BYTES. Everything has internal linkage except the two tables.
//
// With one to a few queries a key head nothing is reused but what memory brings, so the data moves like this:
//
//     K block (64 keys)  --->  scores[row][key] --->  softmax over 64 keys  --->  p[row][key]
//     V block (64 keys)  --->  o[row] += p[row][key] V[key]
//
// every row of K and V is read once, from where it lies, a whole row at a time; q, o and the tiles stay in the first
// cache level. Vector lanes lie along the width. Scores: as many accumulators as a vector has lanes, some rows times
// some keys (16 = 4 x 4), run along the width and are then added up across lanes by a tree of shuffles which leaves
// accumulator n in lane n of one vector: the order of every sum is the same whatever accumulator it is in. Values:
// accumulators hold a slab of o for some rows while 16 keys pass. Both fetch the rows some KiB ahead into the first
// level: the hardware alone reaches two thirds of the bandwidth.
#include "regard/kernels/cpu/few_queries_kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace regard::kernels::REGARD_ISA {
namespace {

#include "regard/kernels/cpu/few_queries_vectors.inl"
// the others use it
#include "regard/kernels/cpu/few_queries_pairs.inl"
#include "regard/kernels/cpu/few_queries_products.inl"

template <class T>
constexpr FewPrimitives<T> few_table{{scores<T, T>}, {sums<T, T>}, {finite<T, T>}, outer<T>,
                                     absorb<T>,      chain<T>,     combine<T>};
template <>
constexpr FewPrimitives<float> few_table<float>{{scores<float, float>, scores<float, Bfloat16>, scores<float, Float16>},
                                                {sums<float, float>, sums<float, Bfloat16>, sums<float, Float16>},
                                                {finite<float, float>, finite<float, Bfloat16>, finite<float, Float16>},
                                                outer<float>,
                                                absorb<float>,
                                                chain<float>,
                                                combine<float>};

}  // namespace

extern const FewPrimitives<float> few_floats;
extern const FewPrimitives<double> few_doubles;
const FewPrimitives<float> few_floats = few_table<float>;
const FewPrimitives<double> few_doubles = few_table<double>;

}  // namespace regard::kernels::REGARD_ISA

// The primitives for one instruction set. Included once by each primitives_*.cpp, which defines REGARD_ISA (the
// namespace) and REGARD_VECTOR_BYTES. Everything has internal linkage except the two tables.
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "regard/kernels/cpu/tile.h"

namespace regard::kernels::REGARD_ISA {
namespace {

#include "regard/kernels/cpu/vector_math.inl"
// the others use it
#include "regard/kernels/cpu/interpreter.inl"
#include "regard/kernels/cpu/transpose.inl"
// that too
#include "regard/kernels/cpu/pointwise.inl"
// and that
#include "regard/kernels/cpu/normalizers.inl"
#include "regard/kernels/cpu/product.inl"

template <class T>
constexpr Primitives<T> table{
    product<T>,
    masked_product<T>,
    finite<T>,
    row_sum<T>,
    pack<T>,
    unpack<T>,
    run<T>,
    mask_scores<T>,
    band,
    combine<T>,
    add_scaled<T>,
    add_kept<T>,
    {absorb<T>, absorb_signed<T>, absorb_sums<Sum<T>, T>, absorb_sums<Sigmoid<T>, T>, absorb_sums<Relu<T>, T>,
     absorb_sums<Identity<T>, T>, absorb_z_score<T>},
    {chain<T>, chain_by<SignedSoftmax<T>, T>, chain_by<Sum<T>, T>, chain_by<Sigmoid<T>, T>, chain_by<Relu<T>, T>,
     chain_by<Identity<T>, T>, chain_by<ZScore<T>, T>},
};

}  // namespace

extern const Primitives<float> floats;
extern const Primitives<double> doubles;
const Primitives<float> floats = table<float>;
const Primitives<double> doubles = table<double>;

}  // namespace regard::kernels::REGARD_ISA

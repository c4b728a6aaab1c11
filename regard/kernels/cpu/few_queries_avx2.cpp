// Few-query primitives for AVX2, FMA and F16C; see few_queries.inl.

#ifdef __AVX2__
#define REGARD_ISA avx2
#define REGARD_VECTOR_BYTES 32
#include "regard/kernels/cpu/few_queries.inl"
#endif

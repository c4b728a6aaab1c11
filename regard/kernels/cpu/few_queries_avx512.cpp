// Few-query primitives for AVX-512 (F, BW, DQ, VL); see few_queries.inl.

#ifdef __AVX512F__
#define REGARD_ISA avx512
#define REGARD_VECTOR_BYTES 64
#include "regard/kernels/cpu/few_queries.inl"
#endif

// Correlation tiles for AVX-512 (F, BW, DQ, VL); see correlation.inl.

#ifdef __AVX512F__
#define REGARD_ISA avx512
#define REGARD_VECTOR_BYTES 64
#include "regard/kernels/cpu/correlation.inl"
#endif

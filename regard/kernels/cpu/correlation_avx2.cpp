// Correlation tiles for AVX2 and FMA; see correlation.inl.

#ifdef __AVX2__
#define REGARD_ISA avx2
#define REGARD_VECTOR_BYTES 32
#include "regard/kernels/cpu/correlation.inl"
#endif

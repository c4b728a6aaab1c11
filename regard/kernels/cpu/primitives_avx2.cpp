// Tile primitives for AVX2 and FMA; see primitives.inl.

#ifdef __AVX2__
#define REGARD_ISA avx2
#define REGARD_VECTOR_BYTES 32
#include "regard/kernels/cpu/primitives.inl"
#endif

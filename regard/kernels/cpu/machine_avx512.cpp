// The probe's loops; see machine.inl.
#ifdef __AVX512F__
#define REGARD_ISA avx512
#define REGARD_VECTOR_BYTES 64
#include "regard/kernels/cpu/machine.inl"
#endif

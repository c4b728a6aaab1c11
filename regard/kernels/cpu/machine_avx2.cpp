// The probe's loops; see machine.inl.
#ifdef __AVX2__
#define REGARD_ISA avx2
#define REGARD_VECTOR_BYTES 32
#include "regard/kernels/cpu/machine.inl"
#endif

// The probe's loops; see machine.inl.
#define REGARD_ISA baseline
#define REGARD_VECTOR_BYTES 16
#include "regard/kernels/cpu/machine.inl"

// Correlation tiles for any processor; see correlation.inl.
#define REGARD_ISA baseline
#define REGARD_VECTOR_BYTES 16
#include "regard/kernels/cpu/correlation.inl"

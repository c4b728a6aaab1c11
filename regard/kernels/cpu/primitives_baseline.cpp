// Tile primitives for any processor; see primitives.inl.
#define REGARD_ISA baseline
#define REGARD_VECTOR_BYTES 16
#include "regard/kernels/cpu/primitives.inl"

// Few-query primitives for any processor; see few_queries.inl.
#define REGARD_ISA baseline
#define REGARD_VECTOR_BYTES 16
#include "regard/kernels/cpu/few_queries.inl"

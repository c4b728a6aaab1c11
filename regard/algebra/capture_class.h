#pragma once

#include <cstdint>

#include "regard/algebra/expr.h"

namespace regard {

/// What the indices of a capture read vary with, beside batch and head: it says which pairs share an entry, and so
/// who owns each entry of the gradient.
enum class CaptureClass : uint8_t {
  nothing,           ///< one entry for all pairs of all batches and heads
  head,              ///< batch or head alone
  query,             ///< i
  key,               ///< j
  offset,            ///< functions of i - j
  query_and_offset,  ///< some indices on i, some on i - j
  query_and_key,     ///< some indices on i, some on j, each on one: table[i // T, j // T]
  both,              ///< an index on i and j freely, or on a dot product
  indirect,          ///< an index reads an integer capture
};

/// The class of `read`, a capture. query() and row() count as i, key() and column() as j.
CaptureClass capture_class(const Expr& read);

const char* name_of(CaptureClass value);  ///< "query_and_key"

}  // namespace regard

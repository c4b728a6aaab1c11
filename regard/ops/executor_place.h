#pragma once

#include <ATen/ATen.h>

#include "regard/ops/attention.h"

/// A rectangle of a larger attention as a call of its own: where its first row and column lie, and how many queries and
/// keys there are altogether.
namespace regard::ops {

struct Place {
  c10::SymInt row = 0;                ///< of the rectangle's first row among the rows that the captures hold
  c10::SymInt query = 0;              ///< its index in the whole sequence of queries
  c10::SymInt column = 0;             ///< of the first column among the columns that the captures hold
  c10::SymInt key = 0;                ///< its index in the whole sequence of keys
  c10::SymInt queries = 0, keys = 0;  ///< lengths of the whole sequences
};

/// The arguments with captures and operands by name.
AttentionArguments by_name(const AttentionSpec& spec, const AttentionArguments& arguments);

/// The spec for the rectangle alone: query(), key(), row(), column() mean what they mean in the whole, queries() and
/// keys() are the whole lengths, and a division by the number of keys stands in the score. Known numbers enter as
/// constants, symbolic ones as captures of `arguments` (by name).
AttentionSpec placed(const AttentionSpec& spec, const Place& place, AttentionArguments& arguments);

/// The spec with queries() and keys() replaced, and with a divisor of all keys moved into the score.
AttentionSpec with_lengths(const AttentionSpec& spec, const c10::SymInt& queries, const c10::SymInt& keys,
                           AttentionArguments& arguments);

/// Whether no pair of the `rows` x `columns` rectangle enters the output or the normalizer, as far as can be told from
/// the positions alone.
bool holds_no_pair(const AttentionSpec& placed, const AttentionArguments& arguments, const c10::SymInt& rows,
                   const c10::SymInt& columns);

}  // namespace regard::ops

#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "regard/algebra/expr.h"

namespace regard {

/// One pair, local indices, and what the other leaves mean there.
struct Pair {
  int64_t batch = 0, head = 0, row = 0, column = 0;
  int64_t batches = 1, heads = 1, queries = 1, keys = 1;
  int64_t query_offset = 0;  ///< query() = row + query_offset
  double scale = 1;
};

/// The values of dots and captures; either may stay empty when no expression reads one.
struct LeafValues {
  std::function<double(const Node& dot, const Pair& pair)> dot;
  std::function<double(const std::string& name, const std::vector<int64_t>& indices)> capture;
};

/// Plain evaluation pair by pair in float64 and 64-bit integers: the reference that tiles and kernels are held
/// against. Only the chosen branch of `where` is evaluated, and `&` and `|` stop at the first operand that decides.
class Evaluator {
 public:
  explicit Evaluator(const std::vector<Expr>& roots);

  /// The value of root `index`; booleans are 0 and 1.
  double operator()(const Pair& pair, const LeafValues& leaves, size_t index = 0);

 private:
  double value(int entry, const Pair& pair, const LeafValues& leaves);
  double compute(const Graph::Entry& entry, const Pair& pair, const LeafValues& leaves);

  Graph graph_;
  std::vector<double> values_;
  std::vector<bool> known_;
};

double evaluate(const Expr& expr, const Pair& pair, const LeafValues& leaves = {});

}  // namespace regard

#pragma once

#include <random>
#include <string>
#include <vector>

#include "regard/algebra/expr.h"

/// Random well-typed expressions. Captures: integer "map"[i], "ids"[j]; real "bias"[h], "table"[i - j], "row"[i];
/// boolean "flag"[j]. Each real capture is read with one form of indices, so that reads never alias.
class RandomExpr {
 public:
  explicit RandomExpr(unsigned seed) : engine_(seed) {}

  bool with_leaves = true;  ///< dots and captures
  bool smooth = false;      ///< real values without kinks and poles

  int below(int count) { return std::uniform_int_distribution<int>(0, count - 1)(engine_); }

  regard::Expr integer(int depth) {
    using namespace regard;
    if (depth == 0 || below(6) == 0) return integer_leaf();
    switch (below(10)) {
      case 0:
        return integer(depth - 1) + integer(depth - 1);
      case 1:
        return integer(depth - 1) - integer(depth - 1);
      case 2:
        return integer(depth - 1) * integer_leaf();
      case 3:
        return floor_div(integer(depth - 1), divisor(depth));
      case 4:
        return integer(depth - 1) % divisor(depth);
      case 5:
        return min(integer(depth - 1), integer(depth - 1));
      case 6:
        return max(integer(depth - 1), integer(depth - 1));
      case 7:
        return abs(integer(depth - 1));
      case 8:
        return -integer(depth - 1);
      default:
        return where(boolean(depth - 1), integer(depth - 1), integer(depth - 1));
    }
  }

  regard::Expr real(int depth) {
    using namespace regard;
    if (depth == 0 || below(8) == 0) return real_leaf();
    switch (below(smooth ? 9 : 19)) {
      case 0:
        return real(depth - 1) + real(depth - 1);
      case 1:
        return real(depth - 1) - real(depth - 1);
      case 2:
        return real(depth - 1) * real(depth - 1);
      case 3:
        return tanh(real(depth - 1));
      case 4:
        return sigmoid(real(depth - 1));
      case 5:
        return cos(real(depth - 1));
      case 6:
        return sin(real(depth - 1));
      case 7:
        return -real(depth - 1);
      case 8:
        return cast(integer(1), Type::real) * 0.25;
      case 9:
        return real(depth - 1) / real(depth - 1);
      case 10:
        return min(real(depth - 1), real(depth - 1));
      case 11:
        return max(real(depth - 1), real(depth - 1));
      case 12:
        return abs(real(depth - 1));
      case 13:
        return floor(real(depth - 1));
      case 14:
        return exp(real(depth - 1));
      case 15:
        return below(2) ? log(real(depth - 1)) : sqrt(real(depth - 1));
      case 16:
        return pow(real(depth - 1), below(2) ? real(depth - 1) : Expr(static_cast<double>(below(5))));
      case 17:
        return below(2) ? real(depth - 1) % real(depth - 1) : floor_div(real(depth - 1), real(depth - 1));
      default:
        return where(boolean(depth - 1), real(depth - 1), real(depth - 1));
    }
  }

  regard::Expr boolean(int depth) {
    using namespace regard;
    if (depth == 0) {
      if (with_leaves && below(6) == 0) return capture("flag", Type::boolean, {key()});
      return query() - key() < below(9) - 3;
    }
    switch (below(6)) {
      case 0:
        return boolean(depth - 1) & boolean(depth - 1);
      case 1:
        return boolean(depth - 1) | boolean(depth - 1);
      case 2:
        return ~boolean(depth - 1);
      case 3:
        return compare(below(6), real(depth - 1), real(depth - 1));
      default:
        return compare(below(6), integer(depth - 1), integer(depth - 1));
    }
  }

 private:
  regard::Expr compare(int which, regard::Expr a, regard::Expr b) {
    using namespace regard;
    switch (which) {
      case 0:
        return a < b;
      case 1:
        return a <= b;
      case 2:
        return a > b;
      case 3:
        return a >= b;
      case 4:
        return a == b;
      default:
        return a != b;
    }
  }

  regard::Expr divisor(int depth) {
    const int value = below(9) - 4;
    const regard::Expr divisor = value == 0 ? integer(depth - 1) : regard::Expr(value);
    return divisor.is_constant(0) ? regard::Expr(1) : divisor;
  }

  regard::Expr integer_leaf() {
    using namespace regard;
    switch (below(with_leaves ? 12 : 10)) {
      case 0:
      case 1:
        return query();
      case 2:
      case 3:
        return key();
      case 4:
        return row();
      case 5:
        return column();
      case 6:
        return below(2) ? batch() : head();
      case 7:
        return below(2) ? queries() : keys();
      case 8:
      case 9:
        return Expr(below(13) - 6);
      case 10:
        return capture("map", Type::integer, {query()});
      default:
        return capture("ids", Type::integer, {key()});
    }
  }

  regard::Expr real_leaf() {
    using namespace regard;
    if (!with_leaves) return below(2) ? cast(integer_leaf(), Type::real) : Expr(below(17) * 0.3 - 2);
    switch (below(7)) {
      case 0:
        return dot();
      case 1:
        return scale() * dot("other");
      case 2:
        return capture("bias", Type::real, {head()});
      case 3:
        return capture("table", Type::real, {query() - key()});
      case 4:
        return capture("row", Type::real, {query()});
      case 5:
        return Expr(below(17) * 0.3 - 2);
      default:
        return dot(0, 4);
    }
  }

  std::mt19937 engine_;
};

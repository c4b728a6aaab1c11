#pragma once

#include <concepts>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

/// The algebra of attention: expressions over one pair (batch, head, query, key).
///
/// An `Expr` is an immutable value. It sees one pair (b, h, i, j) and says what the pair scores, whether it
/// exists, or what it weighs. Written with ordinary operators:
///
///     Expr s = scale() * dot();                                         // what every pair scores by default
///     Expr alibi = s - capture("slopes", Type::real, {head()}) * cast(query() - key(), Type::real);
///     Expr causal = query() >= key();
///     Expr window = causal & (query() - key() < 1024);
///
/// Types: boolean, integer (32 bits in kernels), real (float32 in kernels, float64 in the reference). Mixed
/// arithmetic promotes boolean < integer < real as torch does; `/` of integers is real; comparisons give boolean.
/// Of two booleans `+` and max are or, `*` and min are and (as in torch); their other arithmetic is refused.
/// `//` is `floor_div` and `%` is `%`, both rounding toward minus infinity as in Python; by the integer 0 they give 0.
/// min and max pass NaN on. A cast of a real to integer truncates; a cast to boolean is `!= 0`.
/// Derivatives: min and max split ties evenly; abs'(0) = 0; `where` passes nothing to the branch not chosen.
///
/// What evaluators may rely on: promotion inserts casts, so the operands of arithmetic, of comparisons and the
/// branches of `where` have one type; comparisons and arithmetic never see booleans; no cast goes to boolean or to
/// its own type; `floor` is real; exp to sin and div are real.
/// Two expressions are equal when their printed (JSON) forms are.
namespace regard {

enum class Type : uint8_t { boolean, integer, real };

enum class Op : uint8_t {
  // leaves
  constant,  ///< number
  scale,     ///< the run-time scale of the call: the spec's, or 1/sqrt(Dh)
  dot,       ///< <q_i, k_j> of an operand pair, raw (not scaled)
  batch, head, query, key,      ///< global indices of the pair
  row, column,                  ///< local indices of the pair inside the tensors of this call
  batches, heads, queries, keys,  ///< lengths of this call
  capture,   ///< an element of a captured tensor; arguments are the indices
  // arithmetic
  add, sub, mul, div, floor_div, mod, neg,
  min, max, abs, floor, exp, log, tanh, sigmoid, sqrt, pow, cos, sin,
  // logic
  lt, le, gt, ge, eq, ne, logical_and, logical_or, logical_not, where,
  cast,
};

class Expr;

/// One immutable node. `args` are its operands in order; the remaining fields belong to leaves only.
struct Node {
  Op op = Op::constant;
  Type type = Type::real;
  std::vector<Expr> args;
  double number = 0;         ///< constant
  std::string name;          ///< capture: its name; dot: operand name, "" for the call's own q and k
  int64_t begin = 0;         ///< dot: first feature
  int64_t end = -1;          ///< dot: one past the last feature, -1 for all
  int64_t only_head = -1;    ///< dot: this operand head for all query heads, -1 for h // (H / Hx)

  ~Node();  ///< releases deep chains without recursion
};

class Expr {
 public:
  Expr() = default;                              ///< empty: "use the default"
  template <std::floating_point T>
  Expr(T value) : Expr(literal(static_cast<double>(value), Type::real)) {}   ///< real constant
  template <std::integral T>
  Expr(T value)                                                              ///< integer (boolean) constant
      : Expr(literal(static_cast<double>(value), std::is_same_v<T, bool> ? Type::boolean : Type::integer)) {}
  explicit Expr(std::shared_ptr<const Node> node) : node_(std::move(node)) {}

  bool defined() const { return node_ != nullptr; }
  const Node& node() const;                      ///< throws when empty
  const Node* pointer() const { return node_.get(); }
  Op op() const { return node().op; }
  Type type() const { return node().type; }
  bool is_constant(double value) const;          ///< a constant of any type equal to value
  bool is_constant() const;
  bool unique() const { return node_.use_count() == 1; }

 private:
  static std::shared_ptr<const Node> literal(double value, Type type);
  std::shared_ptr<const Node> node_;
};

// Leaves.
/// An integer constant must fit in 32 bits.
Expr constant(double value, Type type);
Expr scale();
Expr dot();
Expr dot(int64_t begin, int64_t end);
Expr dot(const std::string& operand, int64_t only_head = -1);
Expr dot(const std::string& operand, int64_t begin, int64_t end, int64_t only_head);
Expr batch();
Expr head();
Expr query();
Expr key();
Expr row();
Expr column();
Expr batches();
Expr heads();
Expr queries();
Expr keys();
/// captured[index...]; every index is an integer expression; `type` is the tensor's type class.
Expr capture(const std::string& name, Type type, std::vector<Expr> indices);

// Arithmetic (see the promotion rules above).
Expr operator+(Expr a, Expr b);
Expr operator-(Expr a, Expr b);
Expr operator*(Expr a, Expr b);
Expr operator/(Expr a, Expr b);
Expr operator%(Expr a, Expr b);
Expr operator-(Expr a);
Expr floor_div(Expr a, Expr b);
Expr min(Expr a, Expr b);
Expr max(Expr a, Expr b);
Expr abs(Expr a);
Expr floor(Expr a);
Expr exp(Expr a);
Expr log(Expr a);
Expr tanh(Expr a);
Expr sigmoid(Expr a);
Expr sqrt(Expr a);
Expr pow(Expr a, Expr b);
Expr cos(Expr a);
Expr sin(Expr a);
Expr cast(Expr a, Type type);

// Logic. `&`, `|`, `~` take booleans.
Expr operator<(Expr a, Expr b);
Expr operator<=(Expr a, Expr b);
Expr operator>(Expr a, Expr b);
Expr operator>=(Expr a, Expr b);
Expr operator==(Expr a, Expr b);
Expr operator!=(Expr a, Expr b);
Expr operator&(Expr a, Expr b);
Expr operator|(Expr a, Expr b);
Expr operator~(Expr a);
Expr where(Expr condition, Expr a, Expr b);

/// A node of any op with already typed arguments, typed and checked by the rules above (JSON and Python tracing use it).
Expr make(Op op, std::vector<Expr> args);

/// Structural equality (the operators above build expressions instead).
bool same(const Expr& a, const Expr& b);

/// Python-like text: "scale * dot() - slopes[h] * float(i - j)".
std::string to_string(const Expr& expr);

/// The expression with every node that equals a `first` replaced by its `second`, of the same type. What replaces
/// is not searched again.
Expr substitute(const Expr& expr, const std::vector<std::pair<Expr, Expr>>& replacements);

const char* name_of(Op op);        ///< "floor_div"
Op op_from_name(const std::string& name);
const char* name_of(Type type);    ///< "bool", "int", "float"
Type type_from_name(const std::string& name);

/// Which of b, h, i, j a value varies with.
struct Dependence {
  bool batch = false, head = false, query = false, key = false;
  bool dot = false;  ///< reads a dot product
};
Dependence dependence(const Expr& expr);

/// Nodes of several roots, each distinct node once, arguments before users: what evaluators walk.
struct Graph {
  struct Entry {
    Expr expr;
    std::vector<int> args;  ///< positions in `entries`
  };
  std::vector<Entry> entries;
  std::vector<int> roots;   ///< positions in `entries`, one a root; -1 for an empty Expr
};
Graph flatten(const std::vector<Expr>& roots);

}  // namespace regard

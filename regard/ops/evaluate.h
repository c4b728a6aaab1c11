#pragma once

#include <optional>
#include <vector>

#include "regard/ops/call.h"
#include "regard/ops/plan.h"

namespace regard::ops {

/// The value of expressions over a stripe of query rows as tensors that broadcast to (B, H, m, N).
/// Built of ATen ops alone, so it is differentiable and traces. Real values have the call's compute dtype.
class Evaluation {
 public:
  Evaluation(const Call& call, const Rows& rows);

  /// Value of a graph entry; an undefined tensor for entry -1.
  at::Tensor value(int entry);

  /// keep and counted as boolean tensors; undefined when true of all pairs.
  at::Tensor keep();
  at::Tensor counted();

  /// Adds the gradient of a leaf, d (B, H, m, N), to what the leaf reads.
  /// Dots: rows of q-like (B,Hx,m,Dx) and all of k-like (B,Hx,N,Dx). Captures: the whole tensor.
  struct DotGradient {
    int operand;      ///< -1: q and k; else position in spec->operands()
    at::Tensor q, k;  ///< q: the stripe's rows only
  };
  DotGradient dot_gradient(int entry, const at::Tensor& d);
  struct CaptureGradient {
    int capture;          ///< position in spec->captures()
    at::Tensor gradient;  ///< shaped as the capture, compute dtype; along `row_dim` this stripe's rows only
    int64_t row_dim;      ///< dimension that follows the query rows, -1: none
  };
  CaptureGradient capture_gradient(int entry, const at::Tensor& d);

  /// Of a leaf that reads a capture: which, and the dimension that follows the query rows (-1: none). {-1, -1} for a
  /// dot.
  std::pair<int, int64_t> row_dim(int entry) const;

  /// Throws when a capture was read out of range where the pair exists. Does nothing while tracing.
  void check_ranges();

 private:
  at::Tensor compute(int entry);
  at::Tensor arithmetic(const Node& node, const std::vector<at::Tensor>& args);
  at::Tensor dot(const Node& node);
  at::Tensor index_range(const c10::SymInt& length, int64_t dim);
  std::pair<at::Tensor, at::Tensor> dot_operands(const Node& node);
  std::vector<at::Tensor> indices(int entry);
  at::Tensor read(int entry);
  CaptureGradient place(int capture, const Graph::Entry& read, const std::vector<int64_t>& axes, const at::Tensor& d);
  at::Tensor scatter(const at::Tensor& like, std::vector<at::Tensor> index, const at::Tensor& d);
  std::optional<std::vector<int64_t>> plain_axes(int entry) const;

  const Call& call_;
  const Rows& rows_;
  const std::shared_ptr<const Plan> held_;  // keeps plan_ alive
  const Plan& plan_;
  at::TensorOptions real_, integer_;
  std::vector<at::Tensor> memo_;
  struct RangeCheck {
    std::string name;
    int64_t dim;
    c10::SymInt size;
    at::Tensor outside;
    bool in_mask;
  };
  std::vector<RangeCheck> checks_;
  bool in_mask_ = false;  ///< keep or counted is being evaluated: reads out of range are errors everywhere
};

/// The dtype that holds values of a type, `real` being the dtype of reals.
at::ScalarType dtype_of(Type type, at::ScalarType real);

/// Where `name` stands among sorted names.
int position(const std::vector<std::string>& names, const std::string& name);

/// Known to be 0 (a symbolic size is not known).
bool is_zero(const c10::SymInt& value);

/// Sum over the axes that broadcasting added, back to `like`'s sizes.
at::Tensor reduce_to(const at::Tensor& t, c10::SymIntArrayRef sizes);

/// t with zeros before and after in every dimension: sizes[d] = before[d] + t.size(d) + what is left.
at::Tensor pad_to(const at::Tensor& t, const std::vector<c10::SymInt>& before, c10::SymIntArrayRef sizes);

/// A (.., m, N) times B (.., N, D), where a non-finite row of B reaches only the rows of the product that keep it
/// (0 * NaN would reach all). `keep` broadcasts to A; undefined: the pairs with a nonzero entry of A. With `finite`
/// known it is the plain product.
at::Tensor guarded_matmul(const at::Tensor& a, const at::Tensor& keep, const at::Tensor& b, bool finite);

}  // namespace regard::ops

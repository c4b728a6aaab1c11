#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "regard/ops/attention.h"

namespace regard {

struct LinearArguments;
struct LinearOutput;

/// Where and how keys and values are absorbed into states. A mechanism says what is absorbed; an executor runs it here,
/// in parts, or over the shards of a group, and mechanisms never see which.
///
///     local            one call of the op (the default; a null executor)
///     split:4          the keys in 4 parts, merged in their order
///     stripe           the stripe path, whatever the call's path says
///     ring:GROUP       tokens sharded over the process group of that name; ring:GROUP:zigzag for the balanced layout
///
/// One object serves one call of one mechanism; it counts what it is asked.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual std::string text() const = 0;           ///< what `make_executor` made it from
  virtual bool sharded() const { return false; }  ///< whether tensors hold only this rank's tokens

  /// regard::attention over the keys of every shard. query() and key() are global positions; `arguments.query_offset`
  /// is 0 where tokens are sharded.
  virtual AttentionOutput attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const AttentionSpec& spec, const AttentionArguments& arguments) = 0;
  /// regard::linear_attention over all tokens before (causal) or everywhere.
  virtual LinearOutput linear(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              const LinearArguments& arguments) = 0;

  // What spans the sequence, differentiable. The defaults are those of tokens that lie here.
  virtual at::Tensor total(const at::Tensor& part) { return part; }     ///< sum of every rank's `part`
  virtual at::Tensor greatest(const at::Tensor& part) { return part; }  ///< elementwise maximum of them
  virtual at::Tensor gather(const at::Tensor& part, int64_t dim) {
    (void)dim;
    return part;
  }                                                                                           ///< in global order
  virtual at::Tensor positions(const c10::SymInt& tokens, const at::TensorOptions& options);  ///< (N) int64, global
  virtual c10::SymInt tokens(const c10::SymInt& own) { return own; }                          ///< of all ranks

  /// How often any of these was asked.
  int64_t asked = 0;
};

/// The executor that a text names; null for "local" and "". Throws for a name that is not registered.
std::shared_ptr<Executor> make_executor(const std::string& text);

/// `make` receives what follows the name and its colon ("" when nothing does).
using ExecutorFactory = std::function<std::shared_ptr<Executor>(const std::string& rest)>;
void register_executor(const std::string& name, const std::string& doc, ExecutorFactory make);
struct ExecutorInfo {
  std::string name, doc;
};
std::vector<ExecutorInfo> executors();  ///< sorted by name

}  // namespace regard

// Fresh weights, as torch.nn.init draws them.

#include <c10/core/GradMode.h>

#include <cmath>

#include "regard/base/error.h"
#include "regard/nn/mechanism.h"

namespace regard {
namespace {

struct Fans {
  double in, out;
};

/// Of a weight (out, in, kernel...).
Fans fans_of(const WeightDeclaration& declared) {
  const auto& shape = declared.shape;
  if (shape.size() < 2)
    fail("initialize", declared.name + " with two dimensions or more, whose fans are read from its shape",
         std::to_string(shape.size()));
  double kernel = 1;
  for (size_t d = 2; d < shape.size(); ++d) kernel *= static_cast<double>(shape[d]);
  return {static_cast<double>(shape[1]) * kernel, static_cast<double>(shape[0]) * kernel};
}

/// N(0, std) cut at +-cut (absolute, not in units of std), by the inverse of the distribution.
void truncated_normal(at::Tensor& weight, double std, double cut, const std::optional<at::Generator>& generator) {
  const double edge = std::erf(cut / std / std::sqrt(2.0));
  weight.uniform_(-edge, edge, generator).erfinv_().mul_(std * std::sqrt(2.0)).clamp_(-cut, cut);
}

void fill(at::Tensor& weight, const WeightDeclaration& declared, const std::optional<at::Generator>& generator) {
  const double value = declared.init.value;
  const auto uniform = [&](double bound) { weight.uniform_(-bound, bound, generator); };
  switch (declared.init.kind) {
    case Init::Kind::zeros:
      weight.zero_();
      break;
    case Init::Kind::ones:
      weight.fill_(1);
      break;
    case Init::Kind::constant:
      weight.fill_(value);
      break;
    case Init::Kind::normal:
      weight.normal_(0, value, generator);
      break;
    case Init::Kind::truncated_normal:
      truncated_normal(weight, value, declared.init.cut, generator);
      break;
    case Init::Kind::uniform:
      uniform(value);
      break;
    case Init::Kind::xavier_uniform: {
      const Fans fans = fans_of(declared);
      uniform(std::sqrt(6 / (fans.in + fans.out)));
      break;
    }
    case Init::Kind::identity:
      weight.zero_().diagonal().fill_(1);
      break;
    case Init::Kind::repeated: {
      const at::Tensor entries = at::tensor(declared.init.entries, weight.options());
      weight.view({-1, entries.numel()}).copy_(entries);
      break;
    }
    case Init::Kind::kaiming_uniform:
      uniform(1 / std::sqrt(fans_of(declared).in));
      break;
  }
}

}  // namespace

std::vector<at::Tensor> initialize(const Instance& instance, const at::TensorOptions& options,
                                   std::optional<at::Generator> generator) {
  const c10::NoGradGuard no_grad;
  const auto& declared = instance.weights();
  // Drawn in float32 at least: half types have no erfinv, and equal seeds should give equal weights in every type.
  const at::ScalarType wanted =
      c10::typeMetaToScalarType(options.has_dtype() ? options.dtype() : caffe2::TypeMeta::Make<float>());
  if (!at::isFloatingType(wanted)) fail("initialize", "a floating dtype", c10::toString(wanted));
  const auto drawn = options.dtype(wanted == at::kDouble ? at::kDouble : at::kFloat);
  std::vector<at::Tensor> tensors;
  for (size_t i = 0; i < declared.size(); ++i) {
    if (!declared[i].alias.empty()) {
      size_t target = 0;
      while (declared[target].name != declared[i].alias) ++target;
      tensors.push_back(tensors[target]);
      continue;
    }
    at::Tensor weight = at::empty(declared[i].shape, drawn);
    if (weight.numel() > 0) fill(weight, declared[i], generator);
    tensors.push_back(weight.to(wanted));
  }
  return tensors;
}

}  // namespace regard

#pragma once

#include <memory>

#include "regard/arena/settings.h"
#include "regard/nn/mechanism.h"

namespace regard::arena {

/// The small ViT of this pair on 8 x 8 images of ten classes; a class token only where the pool reads it.
/// Throws regard::Error when mixer and pool do not go together.
std::shared_ptr<const Instance> model_of(const Settings& settings, const std::string& mixer, const std::string& pool);

/// Names checked (registered, of that role); an empty list becomes all of the role.
std::vector<std::string> resolve_names(const std::vector<std::string>& names, Role role);

/// Refuses a configuration of what is not compared. The names must have been resolved.
void require_compared(const Settings& settings);

/// Every valid pair times seeds, seeds innermost; invalid pairs with their reason go to `skipped`.
/// A pair that only a given configuration makes invalid is an error of the caller's.
std::vector<Job> plan(const Settings& settings, std::vector<Skipped>& skipped);

/// Model weights as two flat leaves, so that an optimizer step is a few operations: those with weight decay, and those
/// without (positions, tokens, one-dimensional ones).
class FlatWeights {
 public:
  FlatWeights(const Instance& instance, at::Generator generator);
  std::vector<at::Tensor> views() const;  ///< in declared order, differentiable
  const at::Tensor& decayed() const { return leaves_[0]; }
  const at::Tensor& plain() const { return leaves_[1]; }
  int64_t count() const { return leaves_[0].numel() + leaves_[1].numel(); }

 private:
  struct Place {
    int leaf = 0;      ///< 0 decayed, 1 plain, 2 buffer
    size_t index = 0;  ///< within the leaf
    std::vector<int64_t> shape;
  };
  std::vector<Place> places_;
  std::vector<int64_t> sizes_[2];
  at::Tensor leaves_[2];
  std::vector<at::Tensor> buffers_;
};

}  // namespace regard::arena

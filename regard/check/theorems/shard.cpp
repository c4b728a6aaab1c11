// Tokens sharded over the members of a group give the whole's outputs and gradients.

#include <ATen/Parallel.h>

#include <algorithm>
#include <optional>

#include "regard/check/call.h"
#include "regard/check/theorem.h"
#include "regard/scale/layout.h"
#include "regard/scale/thread_group.h"

namespace regard::checking {
namespace {

using sharding::Layout;

struct Group {
  int64_t size;
  Layout layout;
  std::string text() const { return std::to_string(size) + " shards, " + sharding::name_of(layout); }
};

// The dimensions of an input that count tokens, of x or of the memory; none: every shard has it whole. Nothing for an
// input of unknown meaning.
std::optional<std::vector<int64_t>> token_axes(const std::string& name, const at::Tensor& tensor) {
  if (name == "lengths" || name == "memory_lengths" || name == "slopes") return std::vector<int64_t>{};
  for (const char* own : {"memory", "symbols", "key_hidden", "segments", "memory_segments"})
    if (name == own) return std::vector<int64_t>{1};
  if (name == "positions" || name == "memory_positions") return std::vector<int64_t>{tensor.dim() - 1};
  if (name == "hidden" || name == "bias") return std::vector<int64_t>{tensor.dim() - 2, tensor.dim() - 1};
  return std::nullopt;
}

at::Tensor part_of(const at::Tensor& tensor, const Group& group, int64_t rank, int64_t dim = 1) {
  return tensor.index_select(dim, sharding::token_of_rank(tensor.size(dim), group.size, group.layout, rank));
}

Case shard_of(const Case& whole, const Group& group, int64_t rank, const std::string& member) {
  Case shard = whole.with_x(part_of(whole.x, group, rank));
  for (auto& [name, tensor] : shard.inputs) {
    const auto axes = token_axes(name, tensor);
    for (const int64_t dim : axes.value()) tensor = part_of(tensor, group, rank, dim);
  }
  if (!shard.grid.empty()) shard.grid = {shard.tokens() - shard.prefix};
  shard.executor = "ring:" + member + (group.layout == Layout::zigzag ? ":zigzag" : "");
  return shard;
}

// sum(output * w) of this shard's tokens, w that of `projection` of the whole; a pool's output lies on every rank,
// which share the loss.
at::Tensor share_of_projection(const Case& example, const at::Tensor& output, const at::Tensor& whole,
                               const Group& group, int64_t rank) {
  const at::Tensor w = normal(whole.sizes(), generator_of(977));
  if (!example.per_token) return (output * w).sum() / static_cast<double>(group.size);
  return (output * part_of(w, group, rank)).sum();
}

// Outputs and gradients of every member, by rank.
struct Shards {
  std::vector<at::Tensor> outputs;
  std::vector<std::vector<at::Tensor>> gradients;
};

Shards run_shards(const Case& example, const at::Tensor& whole, const Group& group, const std::string& path) {
  Shards shards;
  shards.outputs.resize(static_cast<size_t>(group.size));
  shards.gradients.resize(static_cast<size_t>(group.size));
  sharding::run_in_threads(group.size, [&](int64_t rank, const std::string& member) {
    at::set_num_threads(1);
    const auto place = static_cast<size_t>(rank);
    const Evaluation found = evaluate(shard_of(example, group, rank, member), [&](const Case& shard) {
      const at::Tensor output = call(shard, path);
      shards.outputs[place] = output.detach();
      return share_of_projection(example, output, whole, group, rank);
    });
    shards.gradients[place] = found.gradients;
  });
  return shards;
}

class Shard final : public Theorem {
 public:
  const char* name() const override { return "shard"; }
  const char* statement() const override {
    return "tokens sharded over a group give the whole's outputs and gradients";
  }
  double tolerance() const override { return 1e-11; }  // rounding of the merges
  std::string excuse(const Subject& subject) const override {
    return subject.info->role == Role::host ? "its input is an image, not a sequence" : "";
  }
  bool wants(const Case& example) const override {
    const int64_t least = example.instance->info().needs_prefix ? 1 : 0;
    return example.x.dim() == 3 && example.grid.size() <= 1 && example.prefix == least && example.tokens() > 2 &&
           example.tokens() < 16 && std::all_of(example.inputs.begin(), example.inputs.end(), [](const auto& input) {
             return token_axes(input.first, input.second).has_value();
           });
  }

  void run(const Case& example, Findings& findings) const override {
    const std::string& path = example.paths.front();
    findings.at(example, path);
    const Evaluation whole = evaluate(example, path);
    std::vector<Group> groups = {{2, Layout::contiguous}, {3, Layout::contiguous}};
    if (example.causal) groups.push_back({2, Layout::zigzag});
    for (const Group& group : groups) {
      Shards shards;
      try {
        shards = run_shards(example, whole.output, group, path);
      } catch (const Refusal& refusal) {
        return findings.refuse(refusal.what());
      }
      compare(example, whole, shards, group, findings);
    }
  }

 private:
  static void compare(const Case& example, const Evaluation& whole, const Shards& shards, const Group& group,
                      Findings& findings) {
    const std::string of = " of " + group.text() + ", ";
    for (int64_t rank = 0; rank < group.size; ++rank) {
      const auto place = static_cast<size_t>(rank);
      const at::Tensor expected = example.per_token ? part_of(whole.output, group, rank) : whole.output;
      findings.compare("output" + of + "rank " + std::to_string(rank) + ", equals the whole's", expected,
                       shards.outputs[place], magnitude(whole.output));
      for (size_t i = 0; i < whole.names.size(); ++i) {
        if (!sharded(whole.names[i])) continue;
        findings.compare("gradient of " + whole.names[i] + of + "rank " + std::to_string(rank) + ", equals the whole's",
                         part_of(whole.gradients[i], group, rank), shards.gradients[place][i], scale_of(whole, i));
      }
    }
    for (size_t i = 0; i < whole.names.size(); ++i) {
      if (sharded(whole.names[i])) continue;
      at::Tensor sum = shards.gradients.front()[i];
      for (size_t rank = 1; rank < shards.gradients.size(); ++rank) sum = sum + shards.gradients[rank][i];
      findings.compare("gradient of " + whole.names[i] + of + "summed, equals the whole's", whole.gradients[i], sum,
                       scale_of(whole, i));
    }
  }

  static bool sharded(const std::string& leaf) {
    return leaf == "x" || leaf == "input.memory" || leaf == "input.symbols";
  }
};

}  // namespace

std::unique_ptr<Theorem> shard() { return std::make_unique<Shard>(); }

}  // namespace regard::checking

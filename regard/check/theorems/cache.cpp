// A decode in any chunks gives what the whole sequence gives, and leaves the same cache.

#include <algorithm>

#include "regard/check/call.h"
#include "regard/check/theorem.h"

namespace regard::checking {
namespace {

using Chunks = std::vector<int64_t>;

struct Decoded {
  at::Tensor output;                ///< the steps' outputs, joined
  std::vector<at::Tensor> streams;  ///< the cache after the last step
};

Decoded decode(const Case& example, const Chunks& chunks, const std::string& path) {
  Case step = example;
  const auto& declared = example.instance->caches();
  for (const CacheStream& stream : declared) step.outputs.push_back("cache." + stream.name);
  std::vector<at::Tensor> outputs;
  Decoded decoded;
  int64_t begin = 0;
  for (const int64_t chunk : chunks) {
    step.x = example.x.slice(1, begin, begin + chunk);
    if (!step.grid.empty()) step.grid = {chunk};
    begin += chunk;
    decoded.streams = call_all(step, path);
    outputs.push_back(decoded.streams.front());
    decoded.streams.erase(decoded.streams.begin());
    for (size_t i = 0; i < declared.size(); ++i) step.inputs[step.outputs[i]] = decoded.streams[i];
  }
  decoded.output = at::cat(outputs, 1);
  return decoded;
}

// A random cut of the sequence into chunks of at least one token.
Chunks random_chunks(int64_t tokens, at::Generator generator) {
  Chunks chunks;
  for (int64_t rest = tokens; rest > 0; rest -= chunks.back()) {
    chunks.push_back(at::randint(1, std::min<int64_t>(rest, 4) + 1, {1}, generator, at::kLong).item<int64_t>());
  }
  return chunks;
}

std::string text_of(const Chunks& chunks) {
  const bool single = std::all_of(chunks.begin(), chunks.end(), [](int64_t chunk) { return chunk == 1; });
  return single ? "one token at a time" : "in chunks " + shape_text(chunks);
}

class Cache final : public Theorem {
 public:
  const char* name() const override { return "cache"; }
  const char* statement() const override { return "a decode in any chunks gives what the whole sequence gives"; }
  double tolerance() const override { return 1e-11; }  // rounding: the same sums in another order
  std::string excuse(const Subject& subject) const override {
    bool causal = false;
    for (const Case& example : subject.cases) {
      if (wants(example)) return "";
      causal = causal || example.causal;
    }
    return causal ? "no configuration declares a cache" : "no configuration is causal, so nothing decodes";
  }
  bool wants(const Case& example) const override {
    return !example.instance->caches().empty() && example.inputs.empty() && example.grid.size() <= 1 &&
           example.prefix == 0;
  }

  void run(const Case& example, Findings& findings) const override {
    const int64_t tokens = example.tokens();
    at::Generator generator = generator_of(static_cast<uint64_t>(tokens));
    std::vector<Chunks> cuts = {{tokens}, Chunks(tokens, 1)};
    for (int i = 0; i < 2 && tokens > 2; ++i) cuts.push_back(random_chunks(tokens, generator));
    for (const std::string& path : example.paths) {
      findings.at(example, path);
      const Evaluation whole = evaluate(example, path);
      const std::vector<at::Tensor> kept = decode(example, {tokens}, path).streams;
      for (const Chunks& chunks : cuts) compare(example, chunks, path, whole, kept, findings);
    }
  }

 private:
  static void compare(const Case& example, const Chunks& chunks, const std::string& path, const Evaluation& whole,
                      const std::vector<at::Tensor>& kept, Findings& findings) {
    const std::string how = text_of(chunks);
    const Decoded decoded = decode(example, chunks, path);
    const bool equal = findings.compare("a decode " + how + " equals the whole", whole.output, decoded.output);
    if (!equal) return;
    for (size_t i = 0; i < kept.size(); ++i) {
      const std::string stream = "cache." + example.instance->caches()[i].name;
      findings.compare(stream + " after a decode " + how + " equals that of one shot", kept[i], decoded.streams[i]);
    }
    // Gradients pass through the cache as through the sequence.
    const Evaluation steps = evaluate(example, [&](const Case& c) { return decode(c, chunks, path).output; });
    for (size_t i = 0; i < steps.gradients.size(); ++i) {
      findings.compare("gradient of " + steps.names[i] + " through a decode " + how + " equals the whole's",
                       whole.gradients[i], steps.gradients[i], scale_of(whole, i));
    }
  }
};

}  // namespace

std::unique_ptr<Theorem> cache() { return std::make_unique<Cache>(); }

}  // namespace regard::checking

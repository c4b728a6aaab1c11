#include "regard/base/error.h"
#include "regard/nn/dense/relational_attention_symbols.h"

namespace regard {

constexpr const char* id = "symbol-retrieval";

at::Tensor SymbolRetrieval::forward(const Config& config, const Weights& weights, const at::Tensor& given,
                                    Context& context) {
  const at::Tensor padded = context.padding(given);
  const at::Tensor x = padded.defined() ? given.masked_fill(padded.unsqueeze(2), 0) : given;
  // Counts the tokens of earlier steps, which only positions and neighbors ask for.
  context.cu_seqlens();
  if (context.decoding()) context.append("tokens", x.slice(-1, 0, 0));
  const at::Tensor y = retrieve_symbols(config, weights, x, context, id);
  return padded.defined() ? y.masked_fill(padded.unsqueeze(2), 0) : y;
}

std::vector<CacheStream> SymbolRetrieval::caches(const Config& config) {
  if (!config.causal) return {};
  std::vector<CacheStream> streams = {CacheStream::append("tokens", {0})};
  for (const CacheStream& stream : symbol_caches(config, config.width)) streams.push_back(stream);
  return streams;
}

void SymbolRetrieval::Config::fields(Fields& f) {
  f("width", width, "model width D, required");
  f("causal", causal, "token i sees tokens j <= i: with relational symbols only earlier neighbors");
  SymbolConfig::fields(f);
}

void SymbolRetrieval::Config::validate() const {
  const bool known = symbols == "symbolic" || symbols == "positional" || symbols == "relational";
  if (!known) fail(id, "symbols 'symbolic', 'positional' or 'relational'", "'" + symbols + "'");
  SymbolConfig::validate(id, width);
  require(!causal || symbols != "relational" || causal_neighbors, id, "causal_neighbors with causal", "false");
}

void SymbolRetrieval::declare(const Config& config, Declaration& weights) {
  declare_symbols(config, config.width, "", weights);
}

Info SymbolRetrieval::info() {
  Info info;
  info.id = id;
  info.family = "dense";
  info.title = "Symbols of relational attention, retrieved once for a model";
  info.equation = "s_i = sum_t softmax_t(scale <q_i, template_t>) library_t";
  info.paper =
      "Altabaa & Lafferty, 2024, Disentangling and Integrating Relational and Sensory Information in Transformer "
      "Architectures";
  info.inputs = {{"lengths", "(B) int64: tokens of each row of x; the rest is padding and gives zeros"},
                 {"positions", "(N) or (B, N) int64: positions of x; default 0, 1, ..."}};
  info.examples = {
      R"({"width": 8, "symbol_heads": 2, "symbol_count": 5})",
      R"({"width": 8, "symbols": "positional", "max_length": 32})",
      R"({"width": 8, "symbols": "relational", "neighbors": 3, "neighbor_heads": 2, "symbol_heads": 4})",
      R"({"width": 12, "symbols": "relational", "include_self": true, "normalize_relations": false, "symbol_scale": 0.5})"};
  return info;
}

REGARD_MECHANISM(SymbolRetrieval)

}  // namespace regard

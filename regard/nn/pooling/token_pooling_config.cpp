#include "regard/base/error.h"
#include "regard/nn/pooling/token_pooling.h"

namespace regard {

void TokenPooling::Config::fields(Fields& f) {
  f("width", width, "model width D, required");
  f("count", count, "number of clusters K; 0: from keep_rate");
  f("keep_rate", keep_rate, "share of the tokens that is kept, rounded down, at least one");
  f("iterations", iterations, "assignments and updates");
  f("variant", variant, "kmeans, kmedoids or thirdparty-kmedoids");
  f("distance", distance, "of kmedoids: euclidean or squared");
  f("weighted", weighted, "tokens count by the attention that they received, or by the input weight");
  f("weight_gradient", weight_gradient, "the means of kmeans are differentiated by the weights too");
}

void TokenPooling::Config::validate() const {
  const auto check = [](bool holds, const char* expected, const std::string& found) {
    require(holds, "token-pooling", expected, found);
  };
  check(count >= 0, "count >= 0", std::to_string(count));
  check(keep_rate > 0 && keep_rate <= 1, "keep_rate in (0, 1]", std::to_string(keep_rate));
  check(iterations >= 0, "iterations >= 0", std::to_string(iterations));
  check(variant == "kmeans" || variant == "kmedoids" || variant == "thirdparty-kmedoids",
        "variant 'kmeans', 'kmedoids' or 'thirdparty-kmedoids'", "'" + variant + "'");
  check(distance == "euclidean" || distance == "squared", "distance 'euclidean' or 'squared'", "'" + distance + "'");
  check(distance == "euclidean" || variant == "kmedoids", "distance 'squared' with variant 'kmedoids' alone",
        "variant '" + variant + "'");
  check(!weight_gradient || (weighted && variant == "kmeans"), "weight_gradient with weighted kmeans",
        weighted ? "variant '" + variant + "'" : "weighted false");
}

Info TokenPooling::info() {
  Info info;
  info.id = "token-pooling";
  info.family = "pooling";
  info.role = Role::reducer;
  info.title = "Token pooling: the tokens are clustered and replaced by the clusters' centers";
  info.equation = "y = argmin_c sum_n w_n min_k |x_n - c_k|^2, by K-Means or K-Medoids";
  info.paper = "Marin et al., 2021, Token Pooling in Vision Transformers";
  info.inputs = {{"lengths", "(B) int64: tokens of each row, prefix included; the rest is padding"},
                 {"weight", "(B, N) or (B, N, 1): significance of each token, prefix included"}};
  info.consumes = {{"significance", "(B, N): what each token received in an attention before", "float (B, N)"}};
  info.outputs = {{"center_index", "(B, K) int64: tokens that became centers, counted behind the prefix (K-Medoids)"},
                  {"assignment", "(B, N) int64: the cluster of each token behind the prefix, -1 at padding"},
                  {"sizes", "(B, K) int64: tokens of each cluster"},
                  {"lengths", "(B) int64: tokens of each row of the output, prefix included"}};
  info.examples = {R"({"width": 8, "weighted": false})",
                   R"({"width": 8, "weighted": false, "keep_rate": 0.75, "variant": "kmedoids", "iterations": 3})",
                   R"({"width": 8, "weighted": false, "count": 1, "variant": "thirdparty-kmedoids"})"};
  info.golden.config = {{"clusters", "count"}, {"dim", "width"}};
  info.golden.inputs = {{"token_weight", "weight"}};
  info.golden.outputs = {{"centers", ""}};
  return info;
}

void TokenPooling::declare(const Config&, Declaration&) {}

}  // namespace regard

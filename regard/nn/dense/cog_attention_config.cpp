// Options of cog-attention: names, checks, what `regard list` and the golden cases read.

#include <cmath>

#include "regard/base/error.h"
#include "regard/nn/dense/cog_attention.h"
#include "regard/nn/dense/sides.h"
#include "regard/nn/dropout.h"

namespace regard {
namespace {

constexpr const char* id = "cog-attention";

void require_one_of(const char* name, const std::string& value, const std::string& first, const std::string& second) {
  if (value != first && value != second)
    fail(id, std::string(name) + " '" + first + "' or '" + second + "'", "'" + value + "'");
}

}  // namespace

void CogAttention::Config::fields(Fields& f) {
  f("width", width, "model width D, required");
  f("heads", heads, "heads H");
  f("head_width", head_width, "width Dh of a head; 0: width / heads");
  f("form", form, "lm (weights qw, kw, vw, ow, x @ W, RoPE) or image (qkv and proj)");
  f("attention", attention, "cog, or softmax: the plain first and last layer of a stack");
  f("qkv_bias", qkv_bias, "bias of the image form's qkv projection");
  f("scale", scale, "factor of the scores; null: head_width^-1/2");
  f("epsilon", epsilon, "added to the sum of exp(|s| - max |s|); scores of exactly 0 are then left out");
  f("rope", rope, "rotary position embedding over pairs (2t, 2t + 1); null: in the form lm");
  f("rope_theta", rope_theta, "base of its frequencies");
  f("causal", causal, "query i sees keys j <= i");
  f("alignment", alignment, "causal with memory: bottom_right (the last query lies on the last key) or top_left");
  f("attn_drop", attn_drop, "dropout of the weights in training");
  f("proj_drop", proj_drop, "dropout of the output in training");
}

void CogAttention::Config::validate() const {
  require(heads >= 1, id, "heads >= 1", std::to_string(heads));
  require(head_width >= 0, id, "head_width >= 0", std::to_string(head_width));
  require(head_width > 0 || width % heads == 0, id, "width to be a multiple of heads, or head_width given",
          "width " + std::to_string(width) + ", heads " + std::to_string(heads));
  require_one_of("form", form, "lm", "image");
  require_one_of("attention", attention, "cog", "softmax");
  require(!qkv_bias || form == "image", id, "qkv_bias only in the form 'image'", "'" + form + "'");
  require(!scale || std::isfinite(*scale), id, "a finite scale", std::to_string(scale.value_or(0)));
  require(std::isfinite(epsilon) && epsilon >= 0, id, "epsilon >= 0", std::to_string(epsilon));
  require(epsilon == 0 || attention == "cog", id, "epsilon only with attention 'cog'", "'" + attention + "'");
  require(!turns() || key_width() % 2 == 0, id, "an even head width with rope", std::to_string(key_width()));
  require(rope_theta > 0, id, "rope_theta > 0", std::to_string(rope_theta));
  require_alignment(id, alignment);
  require_probability(id, "attn_drop", attn_drop);
  require_probability(id, "proj_drop", proj_drop);
}

Info CogAttention::info() {
  Info info;
  info.id = id;
  info.family = "dense";
  info.title = "Cog attention: softmax of score magnitudes, signed by the scores";
  info.equation = "w_ij = sign(p_ij) exp(|p_ij|) / sum_k exp(|p_ik|), p = scale q k^T, y = concat_h(w v) Wo";
  info.paper = "Lv et al., 2024, More Expressive Attention with Negative Weights";
  info.inputs = side_ports();
  info.inputs.insert(
      info.inputs.end(),
      {{"freqs_cos", "(T, Dh/2) or (T, Dh), row p of position p, or (B, M, .): cosines in place of theta's"},
       {"freqs_sin", "the same: sines"},
       {"positions", "(M) or (B, M): positions of x for RoPE; default 0, 1, ..."},
       {"memory_positions", "(N) or (B, N): positions of memory for RoPE; default 0, 1, ..."}});
  info.outputs = {{"attn", "(B, H, M, N): the signed weights, formed in full"}};
  info.examples = {R"({"width": 8, "heads": 2})",
                   R"({"width": 8, "heads": 1, "form": "image", "qkv_bias": true, "head_width": 4})",
                   R"({"width": 8, "heads": 2, "causal": true, "epsilon": 1e-2, "scale": 0.8})",
                   R"({"width": 8, "heads": 1, "attention": "softmax", "rope": false})"};
  Golden& lm = info.golden;
  // The last line: what only describes a case has no option here; numbers tell whether it mattered.
  lm.config = {{"dim", "width"},
               {"d_model", "width"},
               {"n_heads", "heads"},
               {"num_heads", "heads"},
               {"head_dim", "head_width"},
               {"qk_scale", "scale"},
               {"eps", "epsilon"},
               {"rope", ""},
               {"causal", "causal"},
               {"rope_theta", "rope_theta"},
               {"scale", "scale"},
               {"epsilon", "epsilon"},
               {"*", ""}};
  lm.fixed = R"({"alignment": "top_left"})";
  lm.inputs = {{"mask", "!hidden"}};
  lm.outputs = {{"out", ""}, {"attn", "attn"}};
  Golden image = lm, biased = lm;
  image.when = "param.qkv.weight";
  image.fixed = R"({"form": "image", "rope": false})";
  biased.when = "param.qkv.bias";
  biased.fixed = R"({"form": "image", "rope": false, "qkv_bias": true})";
  lm.forms = {biased, image};
  return info;
}

}  // namespace regard

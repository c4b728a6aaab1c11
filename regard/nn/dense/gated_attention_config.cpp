// Options of gated-attention: names, checks, what `regard list` and the golden cases read.

#include <algorithm>

#include "regard/base/error.h"
#include "regard/base/names.h"
#include "regard/nn/dense/gated_attention.h"
#include "regard/nn/dense/sides.h"
#include "regard/nn/dropout.h"

namespace regard {
namespace {

using Config = GatedAttention::Config;
constexpr const char* id = "gated-attention";

void require_one_of(const char* name, const std::string& value, const std::vector<std::string>& known) {
  if (std::find(known.begin(), known.end(), value) == known.end())
    fail(id, std::string(name) + " among " + quoted_list(known), "'" + value + "'" + suggestion(value, known));
}

void check_heads(const Config& c) {
  require(c.heads >= 1, id, "heads >= 1", std::to_string(c.heads));
  for (const auto& [name, value] : {std::pair{"kv_heads", c.kv_heads}, std::pair{"head_width", c.head_width}})
    if (value < 0) fail(id, std::string(name) + " >= 0", std::to_string(value));
  require(c.heads % c.key_heads() == 0, id, "heads to be a multiple of kv_heads",
          "heads " + std::to_string(c.heads) + ", kv_heads " + std::to_string(c.kv_heads));
  require(c.head_width > 0 || c.width % c.heads == 0, id, "width to be a multiple of heads, or head_width given",
          "width " + std::to_string(c.width) + ", heads " + std::to_string(c.heads));
}

void check_gate(const Config& c) {
  require_one_of("position", c.position, {"G1", "G2", "G3", "G4", "G5"});
  require_one_of("activation", c.activation, {"auto", "sigmoid", "silu", "ns_sigmoid"});
  const bool gate = c.headwise || c.elementwise;
  const bool asked = c.position != "G1" || c.shared || c.additive || c.activation != "auto" || c.input_independent;
  require(gate || !asked, id, "headwise or elementwise with options of a gate", "neither");
  require(c.position != "G5" || (!c.headwise && !c.shared), id, "an elementwise gate at G5, which has no heads",
          c.headwise ? "headwise" : "shared");
}

}  // namespace

void GatedAttention::Config::fields(Fields& f) {
  f("width", width, "model width D, required");
  f("heads", heads, "query heads H");
  f("kv_heads", kv_heads, "key heads Hk, a divisor of heads; 0: heads");
  f("head_width", head_width, "width Dh of a head; 0: width / heads");
  f("headwise", headwise, "a gate of one scalar a head; wins over elementwise");
  f("elementwise", elementwise, "a gate of one scalar a channel; neither: no gate");
  f("position", position,
    "of the gate: G1 after attention, G2 values, G3 keys, G4 queries, G5 after the output projection");
  f("shared", shared, "one gate for all heads");
  f("additive", additive, "Y + act(gate) instead of Y * act(gate)");
  f("activation", activation, "sigmoid, silu, ns_sigmoid ((1 + sigmoid) / 2); auto: sigmoid, silu when additive");
  f("input_independent", input_independent, "a learned gate, zero at first, instead of one computed from the token");
  f("qk_norm", qk_norm, "RMSNorm over each head's queries and keys");
  f("norm_epsilon", norm_epsilon, "epsilon of these norms");
  f("qkv_bias", qkv_bias, "biases of q_proj, k_proj, v_proj and o_proj, and of a gate_proj");
  f("rope", rope, "rotary position embedding over pairs (t, t + head_width / 2)");
  f("rope_theta", rope_theta, "base of its frequencies");
  f("causal", causal, "query i sees keys j <= i");
  f("alignment", alignment, "causal with memory: bottom_right (the last query lies on the last key) or top_left");
  f("attn_drop", attn_drop, "dropout of the weights in training");
}

void GatedAttention::Config::validate() const {
  check_heads(*this);
  check_gate(*this);
  require(norm_epsilon > 0, id, "norm_epsilon > 0", std::to_string(norm_epsilon));
  require(!rope || key_width() % 2 == 0, id, "an even head width with rope", std::to_string(key_width()));
  require(rope_theta > 0, id, "rope_theta > 0", std::to_string(rope_theta));
  require_alignment(id, alignment);
  require_probability(id, "attn_drop", attn_drop);
}

Info GatedAttention::info() {
  Info info;
  info.id = id;
  info.family = "dense";
  info.title = "Gated attention: a sigmoid gate of the token on the attention's output";
  info.equation = "y = concat_h(softmax(q_h k_g^T / sqrt(Dh)) v_g * sigmoid(x Wg_h)) Wo";
  info.paper = "Qiu et al., 2025, Gated Attention for Large Language Models";
  info.inputs = side_ports();
  info.inputs.insert(info.inputs.end(),
                     {{"cos", "(T, Dh) or (T, Dh/2), row p of position p, or (B, M, .): cosines in place of theta's"},
                      {"sin", "the same: sines"},
                      {"positions", "(M) or (B, M): positions of x for RoPE; default 0, 1, ..."},
                      {"memory_positions", "(N) or (B, N): positions of memory for RoPE; default 0, 1, ..."}});
  info.outputs = {{"attn", "(B, H, M, N): the weights, formed in full"},
                  {"gate", "act(x Wg), broadcast to what it gates: (B, H, M, 1) head-wise at G1"}};
  info.examples = {
      R"({"width": 8, "heads": 2, "kv_heads": 1, "headwise": true, "causal": true})",
      R"({"width": 8, "heads": 4, "kv_heads": 2, "qkv_bias": true})",
      R"({"width": 8, "heads": 2, "position": "G2", "shared": true, "activation": "silu", "qk_norm": false, "rope": false})",
      R"({"width": 8, "heads": 2, "kv_heads": 1, "position": "G3", "headwise": true, "activation": "ns_sigmoid", "causal": true})",
      R"({"width": 8, "heads": 1, "position": "G5", "additive": true, "input_independent": true, "causal": true})"};
  info.golden.config = {{"hidden_size", "width"},
                        {"n_heads", "heads"},
                        {"num_attention_heads", "heads"},
                        {"n_kv_heads", "kv_heads"},
                        {"num_key_value_heads", "kv_heads"},
                        {"head_dim", "head_width"},
                        {"headwise_attn_output_gate", "headwise"},
                        {"elementwise_attn_output_gate", "elementwise"},
                        {"use_qk_norm", "qk_norm"},
                        {"rms_norm_eps", "norm_epsilon"},
                        {"attention_dropout", ""},
                        {"rope", ""}};
  info.golden.fixed = R"({"alignment": "top_left"})";
  info.golden.inputs = {{"hidden_states", "x"}};
  info.golden.outputs = {{"out", ""}, {"attn", "attn"}};
  return info;
}

}  // namespace regard

#include "regard/models/vit.h"

#include "regard/base/error.h"
#include "regard/models/drop.h"
#include "regard/models/positions.h"
#include "regard/models/vit_pool.h"
#include "regard/nn/blackboard.h"
#include "regard/nn/dropout.h"
#include "regard/nn/shapes.h"

namespace regard {
namespace {

/// One forward: what all blocks share.
struct Pass {
  const ViT::Config& config;
  const Weights& weights;
  Context& context;
  Blackboard& board;
  std::shared_ptr<const Instance> mixer;
  std::vector<int64_t> grid;  ///< of this image
  int64_t prefix = 0;
  std::vector<at::Tensor> attention_maps, block_maps;
};

std::string size_text(int64_t height, int64_t width) { return std::to_string(height) + "x" + std::to_string(width); }

/// Pads or cuts to whole patches as the configuration says; sets the grid.
at::Tensor fit_image(Pass& pass, at::Tensor image) {
  const auto& c = pass.config;
  const auto patch = c.patch(), expected = c.image();
  // Grids are static: a new image size is a new trace.
  const int64_t height = image.sym_size(2).guard_int(__FILE__, __LINE__);
  const int64_t width = image.sym_size(3).guard_int(__FILE__, __LINE__);
  if (!c.dynamic_img_size && (height != expected[0] || width != expected[1]))
    fail("vit", "an image of " + size_text(expected[0], expected[1]) + " (or dynamic_img_size true)",
         size_text(height, width));
  const bool whole = height % patch[0] == 0 && width % patch[1] == 0;
  if (c.dynamic_img_pad && !whole) {
    const int64_t bottom = (patch[0] - height % patch[0]) % patch[0], right = (patch[1] - width % patch[1]) % patch[1];
    image = at::constant_pad_nd(image, {0, right, 0, bottom});
    pass.grid = {(height + bottom) / patch[0], (width + right) / patch[1]};
    return image;
  }
  if (c.dynamic_img_size && !whole)
    fail("vit", "an image that patches of " + size_text(patch[0], patch[1]) + " divide (or dynamic_img_pad true)",
         size_text(height, width));
  pass.grid = {height / patch[0], width / patch[1]};
  return whole ? image : image.narrow(2, 0, pass.grid[0] * patch[0]).narrow(3, 0, pass.grid[1] * patch[1]);
}

/// A convolution whose stride is its kernel, as one matrix product: (B, C, H, W) -> (B, N, D), row-major.
at::Tensor patches(Pass& pass, const at::Tensor& image) {
  const auto& c = pass.config;
  const auto patch = c.patch();
  const at::Tensor whole = fit_image(pass, image);
  const at::Tensor cut = whole.unflatten(3, {pass.grid[1], patch[1]}).unflatten(2, {pass.grid[0], patch[0]});
  const at::Tensor rows = cut.permute({0, 2, 4, 1, 3, 5}).flatten(3).flatten(1, 2);  // (B, N, C p q)
  std::optional<at::Tensor> bias;
  if (!c.pre_norm) bias = pass.weights["patch_embed.proj.bias"];
  return at::linear(rows, pass.weights["patch_embed.proj.weight"].flatten(1), bias);
}

at::Tensor positions(const Pass& pass) {
  const auto& c = pass.config;
  const at::Tensor& learned = pass.weights["pos_embed"];
  if (!c.dynamic_img_size) return learned;
  return resize_positions(learned, c.grid(), pass.grid, c.no_embed_class ? 0 : pass.prefix);
}

at::Tensor with_prefix(const Pass& pass, const at::Tensor& x) {
  const auto& c = pass.config;
  std::vector<at::Tensor> parts;
  const auto add = [&](const char* name, int64_t count) {
    parts.push_back(pass.weights[name].expand_symint({x.sym_size(0), count, c.embed_dim}));
  };
  if (c.class_token) add("cls_token", 1);
  if (c.distilled) add("dist_token", 1);
  if (c.reg_tokens > 0) add("reg_token", c.reg_tokens);
  if (parts.empty()) return x;
  parts.push_back(x);
  return at::cat(parts, 1);
}

/// Tokens entering block 0, (B, P + N, D).
at::Tensor embed(Pass& pass, const at::Tensor& image) {
  const auto& c = pass.config;
  at::Tensor x = patches(pass, image);
  if (!c.positions()) {
    x = with_prefix(pass, x);
  } else if (c.no_embed_class) {
    x = with_prefix(pass, x + positions(pass));
  } else {
    x = with_prefix(pass, x) + positions(pass);
  }
  x = dropout(x, c.pos_drop_rate, pass.context);
  if (c.patch_drop_rate > 0 && pass.context.training) {
    x = drop_patches(x, pass.prefix, pass.grid[0] * pass.grid[1], c.patch_drop_rate, pass.context);
    pass.grid.clear();
  }
  return c.pre_norm ? pass.weights.layer_norm(x, "norm_pre", vit_epsilon) : x;
}

at::Tensor mix(Pass& pass, const Weights& w, const at::Tensor& x, const std::string& name) {
  Context inner = pass.board.open(name + ".attn");
  inner.prefix = pass.prefix;
  for (const int64_t size : pass.grid) inner.grid.emplace_back(size);
  const bool attn = pass.context.wants("attn");
  if (attn && !inner.wants("attn")) inner.wanted.push_back("attn");
  at::Tensor mixed = pass.mixer->forward(w.under("attn.").list(), x, inner);
  pass.board.close(inner);
  if (attn) pass.attention_maps.push_back(inner.outputs["attn"]);
  return dropout(mixed, pass.config.proj_drop_rate, pass.context);
}

/// x + drop_path(ls(branch)).
at::Tensor residual(Pass& pass, const Weights& w, const at::Tensor& x, at::Tensor branch, const char* scale, double p) {
  if (pass.config.layer_scale()) branch = branch * w[scale];
  return x + drop_path(branch, p, pass.context);
}

at::Tensor block(Pass& pass, at::Tensor x, int64_t index) {
  const std::string name = "blocks." + std::to_string(index);
  const Weights w = pass.weights.under(name + ".");
  const double p = pass.config.drop_path(index);
  x = residual(pass, w, x, mix(pass, w, w.layer_norm(x, "norm1", vit_epsilon), name), "ls1.gamma", p);
  const at::Tensor fed =
      vit_mlp(w.under("mlp."), w.layer_norm(x, "norm2", vit_epsilon), pass.config.proj_drop_rate, pass.context);
  return residual(pass, w, x, fed, "ls2.gamma", p);
}

/// The chosen blocks' patch tokens as maps (K, B, D, h, w).
at::Tensor maps(const Pass& pass) {
  if (pass.grid.empty()) fail("vit", "patch_drop_rate 0 with the output 'maps'", "dropped patches");
  std::vector<at::Tensor> chosen;
  for (const int64_t index : pass.config.blocks_out())
    chosen.push_back(pass.block_maps[index].slice_symint(1, pass.prefix).transpose(1, 2).unflatten(-1, pass.grid));
  return at::stack(chosen);
}

at::Tensor head(Pass& pass, const at::Tensor& features) {
  const auto& c = pass.config;
  const auto& w = pass.weights;
  const auto classify = [&](at::Tensor row, const char* name) {
    if (c.final_norm && c.norm_after_pool()) row = w.layer_norm(row, "fc_norm", vit_epsilon);
    row = dropout(row, c.drop_rate, pass.context);
    return c.num_classes > 0 ? w.linear(row, name) : row;
  };
  if (!c.distilled) return classify(vit_pool(c, w, features, pass.prefix, pass.grid, pass.context, pass.board), "head");
  const at::Tensor by_class = classify(features.select(1, 0), "head");
  const at::Tensor by_teacher = classify(features.select(1, 1), "head_dist");
  if (pass.context.wants("head")) pass.context.output("head", by_class);
  if (pass.context.wants("head_dist")) pass.context.output("head_dist", by_teacher);
  return (by_class + by_teacher) * 0.5;
}

void check_image(const ViT::Config& c, const at::Tensor& image) {
  if (image.dim() != 4 || !image.is_floating_point() || image.sym_size(1) != c.in_chans)
    fail("vit", "an image (B, " + std::to_string(c.in_chans) + ", H, W) of a floating type", describe(image));
}

void check_request(const ViT::Config& c, const Pass& pass) {
  const Info& mixer = pass.mixer->info();
  const auto offers = [](const Info& info, const char* name) {
    for (const auto& port : info.outputs)
      if (port.name == name) return true;
    return false;
  };
  if (pass.context.wants("attn") && (!offers(mixer, "attn") || c.depth == 0))
    fail("vit", "a mixer that gives 'attn' when it is asked for", "'" + c.mixer + "'");
  if (pass.context.wants("pool_attn") && (c.pool.empty() || !offers(c.pool_instance()->info(), "attn")))
    fail("vit", "a pool that gives 'attn' when 'pool_attn' is asked for", "'" + c.pool + "'");
  if (pass.context.wants("maps") && c.depth == 0) fail("vit", "depth of at least 1 with the output 'maps'", "0");
  if (!c.distilled && (pass.context.wants("head") || pass.context.wants("head_dist")))
    fail("vit", "distilled true with the outputs 'head' and 'head_dist'", "distilled false");
  for (const auto& [name, tensor] : pass.context.inputs) {
    bool taken = !tensor.defined() || name == "tap.marked";
    for (const auto& port : mixer.inputs) taken = taken || port.name == name;
    if (!taken) fail("vit", "a mixer that takes the input '" + name + "'", "'" + c.mixer + "'");
  }
}

/// The mechanisms in the order in which they run, under the names of their weights.
void add_layers(Pass& pass) {
  for (int64_t i = 0; i < pass.config.depth; ++i)
    pass.board.add("blocks." + std::to_string(i) + ".attn", pass.mixer->info());
  static const Info attention_pool = [] {
    Info info;
    info.id = vit_attention_pool;
    return info;
  }();
  const std::string& kind = pass.config.global_pool;
  if (const auto pool = pass.config.pool_instance())
    pass.board.add("pool", pool->info());
  else if (kind == "map" || kind == "prr")
    pass.board.add(vit_attention_pool, attention_pool);
}

}  // namespace

Info ViT::info() {
  Info info;
  info.id = "vit";
  info.family = "vision";
  info.role = Role::host;
  info.title = "Vision Transformer (ViT, DeiT), host of any mixer and pool";
  info.equation = "t <- t + mixer(norm t); t <- t + mlp(norm t); logits = head(pool(norm t))";
  info.paper = "Dosovitskiy et al. 2020, An Image is Worth 16x16 Words; Touvron et al. 2020, DeiT";
  info.inputs = {{"hidden", "given to the mixer of every block: bool (M, M) over all tokens, true = not attended"},
                 {"key_hidden", "given to the mixer of every block: bool (B, M), true = not attended"},
                 {"bias", "given to the mixer of every block: added to its scores"}};
  info.outputs = {{"features", "(B, P + N, D) after the final norm, before the pool"},
                  {"embedded", "(B, P + N, D) tokens entering block 0"},
                  {"maps", "(K, B, D, h, w) patch tokens after the blocks of out_indices"},
                  {"attn", "(depth, B, H, P + N, P + N) weights of every block's mixer"},
                  {"pool_attn", "weights of the registered pool"},
                  {"head", "(B, classes) logits of the class token (distilled)"},
                  {"head_dist", "(B, classes) logits of the distillation token (distilled)"}};
  info.examples = {
      R"({"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 3, "embed_dim": 8, "depth": 1, "num_heads": 2, "mlp_ratio": 2})",
      R"({"img_size": [4, 6], "patch_size": 2, "in_chans": 1, "num_classes": 3, "embed_dim": 8, "depth": 2, "num_heads": 2,
          "mlp_ratio": 2, "reg_tokens": 2, "init_values": 0.1, "qk_norm": true, "no_embed_class": true, "global_pool": "map"})"};
  info.golden.inputs = {{"x", "x"}, {"*pos*", ""}};
  // Positions resized to another grid ("2x5") are the business of resize_positions, not of the model.
  info.golden.outputs = {{"out", ""}, {"features", "features"}, {"embedded", "embedded"}, {"*#x#*", "-"}};
  return info;
}

at::Tensor ViT::forward(const Config& c, const Weights& weights, const at::Tensor& image, Context& context) {
  context.whole_only("vit", "an image, whose patches are all here");
  Blackboard board("vit", context);
  Pass pass{c, weights, context, board, c.mixer_instance(), {}, c.prefix(), {}, {}};
  check_image(c, image);
  check_request(c, pass);
  add_layers(pass);
  static const std::vector<Port> own_outputs = info().outputs;
  board.check(own_outputs);
  at::Tensor x = embed(pass, image);
  if (context.wants("embedded")) context.output("embedded", x);
  const bool keep_blocks = context.wants("maps");
  for (int64_t i = 0; i < c.depth; ++i) {
    x = block(pass, x, i);
    if (keep_blocks) pass.block_maps.push_back(x);
  }
  if (keep_blocks) context.output("maps", maps(pass));
  if (context.wants("attn")) context.output("attn", at::stack(pass.attention_maps));
  if (c.final_norm && !c.norm_after_pool()) x = weights.layer_norm(x, "norm", vit_epsilon);
  if (context.wants("features")) context.output("features", x);
  const at::Tensor logits = head(pass, x);
  board.finish();
  return logits;
}

REGARD_MECHANISM(ViT)

}  // namespace regard

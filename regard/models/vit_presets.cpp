#include "regard/models/vit_presets.h"

#include <torch/library.h>

#include <nlohmann/json.hpp>

#include "regard/base/error.h"
#include "regard/base/names.h"
#include "regard/ops/boundary.h"

namespace regard {
namespace {

using nlohmann::json;

struct Size {
  const char* name;
  int64_t patch, width, depth, heads;
  double ratio;
};

constexpr Size sizes[] = {
    {"tiny", 16, 192, 12, 3, 4},
    {"small", 16, 384, 12, 6, 4},
    {"medium", 16, 512, 12, 8, 4},
    {"base", 16, 768, 12, 12, 4},
    {"large", 16, 1024, 24, 16, 4},
    {"huge", 14, 1280, 32, 16, 4},
    {"giant", 14, 1408, 40, 16, 48.0 / 11},
    {"gigantic", 14, 1664, 48, 16, 64.0 / 13},
};

json of_size(const std::string& name) {
  for (const Size& size : sizes)
    if (name == size.name)
      return {{"patch_size", {size.patch}},
              {"embed_dim", size.width},
              {"depth", size.depth},
              {"num_heads", size.heads},
              {"mlp_ratio", size.ratio}};
  return {};
}

}  // namespace

std::vector<std::string> vit_presets() {
  std::vector<std::string> names;
  for (const char* size : {"tiny", "small", "base", "large", "huge", "giant", "gigantic"})
    names.push_back(std::string("vit_") + size);
  for (const char* size : {"tiny", "small", "base"})
    for (const char* suffix : {"", "_distilled"}) names.push_back(std::string("deit_") + size + suffix);
  for (const char* size : {"small", "medium", "base", "large", "huge"}) names.push_back(std::string("deit3_") + size);
  return names;
}

std::string vit_preset(const std::string& name) {
  const auto names = vit_presets();
  bool known = false;
  for (const auto& one : names) known = known || one == name;
  if (!known) fail("vit_preset", "one of " + quoted_list(names), "'" + name + "'" + suggestion(name, names));
  const bool distilled = name.size() > 10 && name.substr(name.size() - 10) == "_distilled";
  const auto start = name.find('_') + 1;
  json config = of_size(name.substr(start, (distilled ? name.size() - 10 : name.size()) - start));
  if (distilled) config["distilled"] = true;
  if (name.rfind("deit3", 0) == 0) config.update({{"no_embed_class", true}, {"init_values", 1e-6}});
  return config.dump();
}

}  // namespace regard

TORCH_LIBRARY_FRAGMENT(regard, m) { m.def("vit_preset(str name) -> str", regard::guarded<&regard::vit_preset>); }

#pragma once

#include <string>
#include <vector>

namespace regard {

/// Configuration (JSON for the mechanism "vit") of a published size: vit_tiny, vit_small, vit_base, vit_large,
/// vit_huge, vit_giant, vit_gigantic, deit_{tiny,small,base}[_distilled], deit3_{small,medium,base,large,huge}; images
/// of 224, patch 16 (14 for huge, giant, gigantic). Throws with the nearest name.
std::string vit_preset(const std::string& name);
std::vector<std::string> vit_presets();

}  // namespace regard

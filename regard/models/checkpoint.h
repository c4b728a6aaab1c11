#pragma once

#include <string>
#include <vector>

#include "regard/models/checkpoint_names.h"
#include "regard/nn/mechanism.h"

namespace regard {

/// Weights in declared order for an instance of "vit" out of named tensors (timm's names; see to_timm for others):
/// positions are resized to the grid, the patch kernel to the patch, RGB to the channels. The old grid is taken to be
/// square. Throws for a weight that is missing, left over or of another shape.
///
/// Files of Regard's own (weights with id and configuration beside them, written whole or not at all) are read and
/// written by nn/state_file.h.
std::vector<at::Tensor> fit_vit(const Instance& instance, const NamedTensors& tensors);

}  // namespace regard

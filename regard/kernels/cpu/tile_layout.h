#pragma once

#include "regard/kernels/cpu/block_list.h"
#include "regard/kernels/cpu/sequences.h"

namespace regard::kernels {

/// What tiles are cut by, beside their sizes; null: nothing.
struct TileLayout {
  const BlockList* blocks = nullptr;
  const Sequences* sequences = nullptr;
};

}  // namespace regard::kernels

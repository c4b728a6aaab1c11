#pragma once

#include <optional>
#include <vector>

#include "regard/kernels/cpu/captures.h"
#include "regard/kernels/cpu/program_cache.h"

namespace regard::kernels {

/// Pairs chosen block by block, by captured booleans (a BlockIndex, or a mask written so):
///
///     keep = kept[b, h, row() // query_block, column() // key_block] & (rest | full[the same indices])
///
/// Tiles cut to lie inside these blocks need no program for them: a block that is not kept is skipped, one that is full
/// has all its pairs, and in the others `rest` alone is asked.
class BlockList {
 public:
  /// Of queries and of keys: shorter blocks would leave most lanes of a tile, or most steps of a product, without work.
  static constexpr int64_t kLeastBlock = 16;

  /// What the expressions say block by block, taken out of them: `pairs` is left with the rest. None where they do not
  /// have this form, or where blocks are too small to be tiles.
  static std::optional<BlockList> take(PairExpressions& pairs, const PairSpace& space,
                                       const std::vector<Capture>& captures);

  int64_t query_block() const { return query_block_; }
  int64_t key_block() const { return key_block_; }
  bool by_batch() const { return kept_.varies_with_batch() || full_.varies_with_batch(); }
  bool by_head() const { return kept_.varies_with_head() || full_.varies_with_head(); }
  bool kept(int64_t batch, int64_t head, int64_t query_block, int64_t key_block) const {
    return *kept_.at(batch, head, query_block, key_block) != 0;
  }
  bool full(int64_t batch, int64_t head, int64_t query_block, int64_t key_block) const {
    return full_.data != nullptr && *full_.at(batch, head, query_block, key_block) != 0;
  }

 private:
  /// A captured boolean read by blocks; a stride of 0 where it does not vary.
  struct Bits {
    const uint8_t* data = nullptr;
    int64_t batch = 0, head = 0, row = 0, column = 0;  ///< strides
    int64_t group = 1;                                 ///< its head = query head // group
    bool varies_with_batch() const { return batch != 0; }
    bool varies_with_head() const { return head != 0; }
    const uint8_t* at(int64_t b, int64_t h, int64_t i, int64_t j) const {
      return data + b * batch + h / group * head + i * row + j * column;
    }
  };
  struct Form;

  static std::optional<Form> form_of(const Expr& expr, const PairSpace& space);
  static std::optional<Bits> bits_of(const Form& form, const PairSpace& space, const std::vector<Capture>& captures);

  Bits kept_, full_;
  int64_t query_block_ = 1, key_block_ = 1;
};

}  // namespace regard::kernels

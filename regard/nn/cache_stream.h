#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace regard {

/// One named stream of what a mechanism keeps between the steps of a decode. Its tensor is given to a call as the input
/// "cache.NAME" and returned, longer, as the output of the same name; a first call gives none.
///
///     append  every token's entry: (B, entry[:-1]..., tokens so far, entry[-1])
///     ring    the last `length` tokens' entries, fewer at the start: (B, entry[:-1]..., <= length, entry[-1])
///     state   one entry a sequence, replaced by every step: (B, entry...)
///
/// Keys of heads {Hk, Dh} are thus (B, Hk, P, Dh), symbols of width {D} are (B, P, D).
struct CacheStream {
  enum class Kind : uint8_t { append, ring, state };
  std::string name;
  Kind kind = Kind::append;
  std::vector<int64_t> entry;
  int64_t length = 0;  ///< ring

  static CacheStream append(std::string name, std::vector<int64_t> entry) {
    return {std::move(name), Kind::append, std::move(entry), 0};
  }
  static CacheStream ring(std::string name, std::vector<int64_t> entry, int64_t length) {
    return {std::move(name), Kind::ring, std::move(entry), length};
  }
  static CacheStream state(std::string name, std::vector<int64_t> entry) {
    return {std::move(name), Kind::state, std::move(entry), 0};
  }
};

}  // namespace regard

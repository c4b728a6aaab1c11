#pragma once

#include <atomic>
#include <cstdint>
#include <string>

namespace regard::sharding {

/// Bytes that one member sent, by executor text. Payload (floating tensors) is what the formulas declare; metadata
/// (integer and boolean tensors, lengths) and the collectives of total, greatest and gather are counted apart.
struct Traffic {
  std::atomic<int64_t> forward{0}, backward{0}, metadata{0}, collective{0};
};

Traffic& traffic_of(const std::string& executor);
std::string traffic_json();  ///< {"ring:0:zigzag": {"forward": 1, "backward": 2, "metadata": 3, "collective": 4}}
void reset_traffic();

/// Payload that a ring sends for one attention on `rank` of `ranks`, exact for uneven shards. Keys and values of a rank
/// with n keys are B n Hk (Dk + Dv) e bytes; with equal shards and Dk = Dv = D:
///
///     forward (W-1) 2 B n Hk D e        backward (W-1) 2 B n Hk D e + W 2 B n Hk D a
///
/// e: bytes of an element, a: of an accumulator (4; 8 for float64). `widths`: the sum over all floating tensors that
/// travel of their elements a key, B Hk (Dk + Dv) and what captures and operands beside the keys add.
struct RingBytes {
  int64_t forward = 0, backward = 0;
};
RingBytes ring_bytes(int64_t keys, int64_t ranks, const std::string& layout, int64_t rank, int64_t widths,
                     int64_t element_size);

}  // namespace regard::sharding

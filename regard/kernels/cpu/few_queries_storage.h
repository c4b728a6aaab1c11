#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "regard/kernels/attention.h"
#include "regard/kernels/cpu/few_queries_kernels.h"

/// Single elements of the storage types, for what is converted once a row. Vectors have their own conversions.
namespace regard::kernels {

template <class S>
constexpr Storage storage_of = std::is_same_v<S, bfloat16>  ? Storage::bfloat16
                               : std::is_same_v<S, float16> ? Storage::float16
                                                            : Storage::same;

template <class T, class S>
T element(S stored) {
  if constexpr (std::is_same_v<S, bfloat16>) {
    return std::bit_cast<float>(static_cast<uint32_t>(stored.bits) << 16);
  } else if constexpr (std::is_same_v<S, float16>) {
    const uint32_t magnitude = stored.bits & 0x7fff, sign = static_cast<uint32_t>(stored.bits & 0x8000) << 16;
    // The exponent's bias differs by 112; infinities and NaN keep their mantissa.
    uint32_t bits = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 13) * 0x1p112f);
    if (magnitude >= 0x7c00) bits |= 0x7f800000;
    return std::bit_cast<float>(bits | sign);
  } else {
    return stored;
  }
}

/// Rounded to nearest, ties to even.
template <class S, class T>
S stored(T value) {
  if constexpr (std::is_same_v<S, bfloat16>) {
    const uint32_t bits = std::bit_cast<uint32_t>(static_cast<float>(value));
    if (value != value) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
  } else if constexpr (std::is_same_v<S, float16>) {
    const uint32_t bits = std::bit_cast<uint32_t>(static_cast<float>(value));
    const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return {static_cast<uint16_t>(sign | 0x7e00)};
    if (magnitude >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // 65520 and more round to infinity
    if (magnitude < 0x38800000) {  // subnormal: adding 0.5 rounds at the last bit, 2^-24
      const float sum = std::bit_cast<float>(magnitude) + 0.5f;
      return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(sum) - 0x3f000000))};
    }
    const uint32_t rounded = magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1);
    return {static_cast<uint16_t>(sign | rounded >> 13)};
  } else {
    return static_cast<S>(value);
  }
}

/// The same array from row `row` and column `column` on. S: what an array that is not of T holds.
template <class T, class S>
FewArray part_of(FewArray array, int64_t row, int64_t column) {
  const int64_t size = array.storage == Storage::same ? sizeof(T) : sizeof(S);
  array.data = static_cast<const char*>(array.data) + (row * array.stride + column) * size;
  return array;
}

}  // namespace regard::kernels

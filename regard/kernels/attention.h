#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "regard/algebra/spec.h"

/// Attention without its M x N matrix, on pointers and strides; nothing of torch.
namespace regard::kernels {

/// A (B, H, L, D) array read through strides, in elements; a stride of 0 broadcasts.
template <class T>
struct Array4 {
  T* data = nullptr;
  int64_t batch = 0, head = 0, row = 0, column = 0;  ///< strides
};

enum class Element : uint8_t { boolean, int32, int64, float32, float64 };

/// A captured tensor, any rank, any strides (in elements). `gradient` is contiguous, zeroed by the caller, or null.
struct Capture {
  std::string name;
  const void* data = nullptr;
  Element element = Element::float32;
  std::vector<int64_t> sizes, strides;
  void* gradient = nullptr;  ///< of the call's T
};

/// An extra pair of operands of a named dot: (B, Hx, M, Dx) and (B, Hx, N, Dx).
template <class T>
struct Operand {
  std::string name;
  Array4<const T> q, k;
  int64_t heads = 1, width = 0;
  T* q_gradient = nullptr;  ///< contiguous (B, Hx, M, Dx), zeroed by the caller, or null
  T* k_gradient = nullptr;
};

/// Floats of 16 bits, as they lie in memory.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

/// Keys and values in pages: token j of batch entry b is entry j % size of page table[b entries + j / size].
struct PageTable {
  const int64_t* table = nullptr;
  int64_t entries = 0;  ///< of a batch entry
  int64_t size = 0;     ///< tokens of a page; 0: not in pages
};

/// One call. T is float or double, in which everything is computed; S is how q, k, v and o are stored: T itself, or
/// bfloat16 or float16 with T = float.
template <class T, class S = T>
struct Attention {
  int64_t B = 0, H = 0, Hk = 0, M = 0, N = 0, Dh = 0, Dv = 0;
  int64_t query_offset = 0;
  double scale = 1;
  const AttentionSpec* spec = nullptr;  ///< resolved; see refusal()
  Array4<const S> q, k, v;              ///< (B,H,M,Dh) (B,Hk,N,Dh) (B,Hk,N,Dv)
  PageTable pages;                      ///< then k, v are (P,Hk,size,Dh) (P,Hk,size,Dv); see reads_pages
  std::vector<Capture> captures;        ///< in the order of spec->captures()
  std::vector<Operand<T>> operands;     ///< in the order of spec->operands()
  const T* sinks = nullptr;             ///< contiguous (H, S)
  int64_t sink_count = 0;
  Array4<S> o;       ///< (B,H,M,Dv), written
  T* lse = nullptr;  ///< contiguous (B,H,M), of the denominator (sinks too), -inf where it is 0; 0 where there is none
};

/// What the backward gives. Gradients are contiguous; any may be null (not wanted). Those of q, k and v are written;
/// those of sinks, captures and operands are added to what the caller zeroed.
template <class T, class S = T>
struct AttentionGradient {
  Array4<const S> grad_o;       ///< (B,H,M,Dv)
  const T* grad_lse = nullptr;  ///< contiguous (B,H,M), or null for zero
  Array4<const S> o;            ///< the forward's output
  const T* lse = nullptr;       ///< the forward's, contiguous (B,H,M)
  T* q = nullptr;               ///< (B,H,M,Dh)
  T* k = nullptr;               ///< (B,Hk,N,Dh)
  T* v = nullptr;               ///< (B,Hk,N,Dv)
  T* sinks = nullptr;           ///< (H,S)
};

/// Why no kernel can run this spec ("dropout"), or "" when it can.
std::string refusal(const AttentionSpec& resolved);

/// Whether some kernel reads this storage in place. Where none does, the caller widens q, k, v, o and grad_o to T.
template <class T, class S>
bool reads_in_place(const Attention<T, S>& call);
template <class T, class S>
bool reads_in_place(const Attention<T, S>& call, const AttentionGradient<T, S>& gradient);

/// Whether the forward of this call reads k and v through its table of pages: few queries do. Others, and the backward,
/// want them gathered.
template <class T, class S>
bool reads_pages(const Attention<T, S>& call);

/// o_i = sum_j normalizer_j(score_i.) weight_ij v_j over the kept pairs; see AttentionSpec.
/// Throws regard::Error when a capture is read out of range where `keep` holds.
template <class T, class S>
void attention_forward(const Attention<T, S>& call);

/// Gradients of o and lse with respect to q, k, v, operands, sinks and captures. `call.o` and `call.lse` are not read.
/// Bits depend neither on threads nor on batch-mates.
template <class T, class S>
void attention_backward(const Attention<T, S>& call, const AttentionGradient<T, S>& gradient);

/// The instruction set that the dispatcher chose: "amx" (AVX-512, and tiles for bfloat16), "avx512", "avx2" or
/// "baseline". REGARD_ISA forces a lower one.
std::string isa();

}  // namespace regard::kernels

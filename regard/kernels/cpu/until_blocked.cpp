// Entry points of regard/kernels/attention.h until the blocked kernels are here: delete this file with their arrival.
#include "regard/kernels/attention.h"
namespace regard::kernels {
std::string refusal(const AttentionSpec&) { return "the blocked kernels are absent"; }
template <class T> void attention_forward(const Attention<T>&) {}
template <class T> void attention_backward(const Attention<T>&, const AttentionGradient<T>&) {}
template void attention_forward<float>(const Attention<float>&);
template void attention_forward<double>(const Attention<double>&);
template void attention_backward<float>(const Attention<float>&, const AttentionGradient<float>&);
template void attention_backward<double>(const Attention<double>&, const AttentionGradient<double>&);
std::string isa() { return "the blocked kernels are absent"; }
}

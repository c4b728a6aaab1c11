#pragma once

#include "regard/kernels/attention.h"

/// bfloat16 on the tile registers of AMX.
namespace regard::kernels {

/// Whether the processor has AMX bf16, the kernel lets this process use it and REGARD_ISA does not forbid it.
bool amx_present();

/// Why AMX cannot run this call ("no AMX", "an expression", ...), or "" when it can.
std::string amx_refusal(const Attention<float, bfloat16>& call);

/// See attention_forward.
void amx_forward(const Attention<float, bfloat16>& call);

/// See attention_backward. Gradients are float.
void amx_backward(const Attention<float, bfloat16>& call, const AttentionGradient<float, bfloat16>& gradient);

}  // namespace regard::kernels

#pragma once

#include <string>

namespace regard::kernels {

/// Makes every later call use the instruction set `name`. False, and no change, when the processor lacks it; throws
/// for an unknown name. Not while a call runs.
bool use_isa(const std::string& name);

/// Whether the processor has AMX bf16 and the operating system lets this process use its tiles.
bool amx_usable();

}  // namespace regard::kernels

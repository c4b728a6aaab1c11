#pragma once

#include <string>

namespace regard {

/// The shortest decimal that reads back as `value`, always with a point or an exponent; "inf", "-inf", "nan".
std::string print_real(double value);

}  // namespace regard

#pragma once

namespace regard {

// The version of Regard, as "major.minor.patch".
const char* version();

}  // namespace regard

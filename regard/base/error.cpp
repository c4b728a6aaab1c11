#include "regard/base/error.h"

namespace regard {

void fail(const std::string& function, const std::string& expected, const std::string& found) {
  throw Error("[" + function + "] expected " + expected + "; found " + found);
}

}  // namespace regard

// A program of the kernel library alone: neither torch nor Python is needed to build or run it.
#include <cstdio>

#include "regard/base/version.h"

int main() {
  std::printf("Regard %s\n", regard::version());
  return 0;
}

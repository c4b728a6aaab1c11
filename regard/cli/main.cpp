#include <string>
#include <vector>

#include "regard/cli/cli.h"

int main(int count, char** arguments) {
  return regard::cli(std::vector<std::string>(arguments + 1, arguments + count));
}

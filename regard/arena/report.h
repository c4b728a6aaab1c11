#pragma once

#include <string>
#include <vector>

#include "regard/arena/settings.h"

namespace regard::arena {

struct Failure {
  Job job;
  std::string reason;
};

/// Everything a run of the arena has to tell.
struct Report {
  Settings settings;
  std::vector<Finished> finished;  ///< in the order of the plan
  std::vector<Skipped> skipped;    ///< pairs that do not go together
  std::vector<Failure> failures;
  int64_t planned = 0;  ///< trainings
  bool interrupted = false;
  int64_t train_images = 0, held_images = 0;
  std::string folder;
};

/// The aligned table and what was left out, for people.
std::string to_table(const Report& report);

/// The same as JSON; accuracies in [0, 1], times in seconds.
std::string to_json(const Report& report);

}  // namespace regard::arena

#pragma once

#include <string>

#include "regard/arena/report.h"
#include "regard/arena/settings.h"

namespace regard::arena {

/// How a run goes, apart from what it computes.
struct RunOptions {
  std::string data;     ///< folder of digits.csv; empty: as installed
  std::string folder;   ///< of the run; empty: a new one under runs/, or with `resume` the newest there
  bool resume = false;  ///< go on with the run in `folder`
  int64_t workers = 0;  ///< trainings at a time, one thread each; 0: as many as cores
};

/// Trains every valid pair of settings.mixers x settings.pools, settings.seeds times, and reports. Ctrl-C ends the
/// trainings under way; what has finished is kept in the folder. Outcomes do not depend on `workers`.
/// Throws regard::Error for unknown names, settings out of range, or when no pair is valid.
Report run_digits(const Settings& settings, const RunOptions& options);

}  // namespace regard::arena

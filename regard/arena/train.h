#pragma once

#include <atomic>
#include <optional>

#include "regard/arena/digits_data.h"
#include "regard/arena/settings.h"

namespace regard::arena {

/// Trains the job's model and measures it on the held-out part: AdamW, a linear warm-up over a tenth of the steps, then
/// a cosine to zero, gradient norm at most 1, label smoothing 0.1, random shifts. Every random number comes from
/// generators seeded by the job alone, so the outcome does not depend on what runs beside it.
/// `progress` goes from 0 to 1. Nothing when `stop` was set before the end.
std::optional<Outcome> train(const Settings& settings, const Job& job, const Digits& digits,
                             std::atomic<double>& progress, const std::atomic<bool>& stop);

}  // namespace regard::arena

#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace regard::arena {

/// What a run of the arena compares and how it trains. The training defaults were chosen on the validation part.
struct Settings {
  std::vector<std::string> mixers, pools;  ///< empty: every registered one
  int64_t seeds = 2;
  int64_t epochs = 160;
  int64_t batch = 64;
  double learning_rate = 3e-3;
  double weight_decay = 0.05;
  int64_t width = 48;
  int64_t depth = 3;
  int64_t heads = 4;
  double mlp_ratio = 2;
  int64_t patch = 2;
  int64_t shift = 1;        ///< largest random shift of a training image, in pixels
  int64_t train_limit = 0;  ///< first so many training images; 0: all
  bool validate = false;    ///< train without the validation part and report that instead of the test
  std::map<std::string, std::string> configs;  ///< mechanism id -> JSON merged over what the host tells it
};

/// One training run.
struct Job {
  std::string mixer, pool;
  int64_t seed = 0;
};

/// What one training run gave.
struct Outcome {
  double accuracy = 0;  ///< of the held-out part, in [0, 1]
  int64_t parameters = 0;
  double train_seconds = 0;
  double inference_seconds = 0;  ///< per image
  double final_loss = 0;         ///< mean over the last epoch
};

struct Skipped {
  std::string mixer, pool, reason;
};

struct Finished {
  Job job;
  Outcome outcome;
};

}  // namespace regard::arena

#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace regard::arena {

/// Progress of a run on stderr. On a terminal: a bar with the time left for each job that runs and one for all, drawn
/// in place. Elsewhere: one line for each job that ended.
class Progress {
 public:
  /// `total` jobs in this run, `done` of them finished before it started.
  Progress(int64_t total, int64_t done);
  ~Progress();  ///< takes the bars off the screen

  /// A job begins: the number to move, from 0 to 1, by its worker.
  std::atomic<double>& begin(int64_t job, const std::string& title);
  /// A job ended; `line` says how ("97.8 % in 36 s").
  void end(int64_t job, const std::string& line);

 private:
  using Clock = std::chrono::steady_clock;
  struct Running {
    int64_t job;
    std::string title;
    std::unique_ptr<std::atomic<double>> share;
    Clock::time_point start;
  };
  void draw();
  void erase();
  std::string bar(const std::string& title, double share, double elapsed) const;
  double overall() const;

  const int64_t total_, before_;
  const bool terminal_;
  int64_t ended_ = 0;
  int drawn_ = 0;
  Clock::time_point start_ = Clock::now();
  std::vector<Running> running_;
  std::mutex mutex_;
  std::atomic<bool> closing_{false};
  std::thread painter_;
};

/// "8 s", "3 min 20 s", "2 h 5 min".
std::string duration(double seconds);

}  // namespace regard::arena

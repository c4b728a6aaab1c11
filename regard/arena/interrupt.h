#pragma once

#include <csignal>

#include <atomic>

namespace regard::arena {

/// While it lives, Ctrl-C (SIGINT) and SIGTERM set a flag instead of ending the process; a second signal acts as usual.
/// The handlers before it (Python's own among them) come back at the end. One at a time.
class Interrupt {
 public:
  Interrupt();
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;
  static std::atomic<bool>& flag();

 private:
  struct sigaction interrupt_, terminate_;
};

}  // namespace regard::arena

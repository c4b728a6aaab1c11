#include "regard/arena/interrupt.h"

namespace regard::arena {
namespace {

std::atomic<bool> stop{false};
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler sets it");

extern "C" void on_signal(int signal) {
  if (stop.exchange(true)) std::signal(signal, SIG_DFL), std::raise(signal);
}

}  // namespace

std::atomic<bool>& Interrupt::flag() { return stop; }

Interrupt::Interrupt() {
  stop = false;
  struct sigaction action = {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  sigaction(SIGINT, &action, &interrupt_);
  sigaction(SIGTERM, &action, &terminate_);
}

Interrupt::~Interrupt() {
  sigaction(SIGINT, &interrupt_, nullptr);
  sigaction(SIGTERM, &terminate_, nullptr);
}

}  // namespace regard::arena

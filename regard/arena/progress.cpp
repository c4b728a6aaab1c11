#include "regard/arena/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace regard::arena {
namespace {

constexpr int bar_width = 24;
constexpr auto redraw = std::chrono::milliseconds(200);

double since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::string time_left(double share, double elapsed) {
  if (share <= 0.01) return "";
  return duration(elapsed * (1 - share) / share) + " left";
}

}  // namespace

std::string duration(double seconds) {
  const auto whole = static_cast<int64_t>(std::ceil(seconds));
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
  return fmt::format("{} h {} min", whole / 3600, whole % 3600 / 60);
}

Progress::Progress(int64_t total, int64_t done) : total_(total), before_(done), terminal_(isatty(STDERR_FILENO)) {
  if (!terminal_) return;
  painter_ = std::thread([this] {
    while (!closing_) {
      {
        const std::lock_guard lock(mutex_);
        draw();
      }
      std::this_thread::sleep_for(redraw);
    }
  });
}

Progress::~Progress() {
  closing_ = true;
  if (painter_.joinable()) painter_.join();
  erase();
}

std::atomic<double>& Progress::begin(int64_t job, const std::string& title) {
  const std::lock_guard lock(mutex_);
  running_.push_back({job, title, std::make_unique<std::atomic<double>>(0.0), Clock::now()});
  return *running_.back().share;
}

void Progress::end(int64_t job, const std::string& line) {
  const std::lock_guard lock(mutex_);
  const auto it = std::find_if(running_.begin(), running_.end(), [&](const Running& one) { return one.job == job; });
  const std::string title = it == running_.end() ? "" : it->title;
  if (it != running_.end()) running_.erase(it);
  ++ended_;
  erase();
  const double share = overall();
  const std::string left = before_ + ended_ < total_ ? time_left(share, since(start_)) : "";
  fmt::print(stderr, "[{}/{}] {}: {}{}\n", before_ + ended_, total_, title, line, left.empty() ? "" : "; " + left);
  std::fflush(stderr);
}

double Progress::overall() const {
  double done = static_cast<double>(ended_);
  for (const auto& one : running_) done += *one.share;
  return total_ > before_ ? done / static_cast<double>(total_ - before_) : 1;
}

std::string Progress::bar(const std::string& title, double share, double elapsed) const {
  const int full = static_cast<int>(share * bar_width);
  return fmt::format("{:<44} [{}{}] {:>3.0f} %  {}", title, std::string(full, '#'), std::string(bar_width - full, '-'),
                     100 * share, time_left(share, elapsed));
}

void Progress::draw() {
  erase();
  for (const auto& one : running_) {
    fmt::print(stderr, "{}\n", bar(one.title, *one.share, since(one.start)));
    ++drawn_;
  }
  const std::string title = fmt::format("all: {} of {} trainings done", before_ + ended_, total_);
  fmt::print(stderr, "{}\n", bar(title, overall(), since(start_)));
  ++drawn_;
  std::fflush(stderr);
}

void Progress::erase() {
  // Up a line and clear it, for each line drawn.
  for (; drawn_ > 0; --drawn_) fmt::print(stderr, "\x1b[1A\x1b[2K");
}

}  // namespace regard::arena

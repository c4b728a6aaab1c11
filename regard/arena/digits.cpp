#include "regard/arena/digits.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <thread>

#include "regard/arena/digits_data.h"
#include "regard/arena/interrupt.h"
#include "regard/arena/model.h"
#include "regard/arena/progress.h"
#include "regard/arena/run_folder.h"
#include "regard/arena/train.h"
#include "regard/base/error.h"
#include "regard/check/call.h"

namespace regard::arena {
namespace {

void at_least(const char* name, double value, double least) {
  if (!(value >= least)) fail("arena", fmt::format("{} of at least {}", name, least), fmt::format("{}", value));
}

void check(const Settings& s) {
  at_least("seeds", static_cast<double>(s.seeds), 1);
  at_least("epochs", static_cast<double>(s.epochs), 1);
  at_least("batch", static_cast<double>(s.batch), 1);
  at_least("learning_rate", s.learning_rate, 0);
  at_least("weight_decay", s.weight_decay, 0);
  at_least("train_limit", static_cast<double>(s.train_limit), 0);
  if (s.shift < 0 || s.shift > 4) fail("arena", "shift in [0, 4]", std::to_string(s.shift));
  if (s.patch < 1 || 8 % s.patch) fail("arena", "patch to divide 8", std::to_string(s.patch));
}

int64_t cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

/// One intra-op thread in every worker while it lives: trainings run side by side, and their bits do not depend on the
/// machine's number of cores.
class SingleThreaded {
 public:
  SingleThreaded() : before_(at::get_num_threads()) { at::set_num_threads(1); }
  ~SingleThreaded() { at::set_num_threads(before_); }

 private:
  int before_;
};

/// What the workers share.
struct Work {
  const Settings& settings;
  const Digits& digits;
  const RunFolder& folder;
  const std::vector<Job>& jobs;
  std::vector<std::optional<Outcome>> outcomes;
  std::vector<std::string> failures;
  std::atomic<size_t> next{0};
  Progress& progress;
};

/// One line, without the stack that torch appends.
std::string reason_of(const std::exception& error) {
  std::string reason = checking::message_of(error);
  std::replace(reason.begin(), reason.end(), '\n', ' ');
  return reason;
}

void run_job(Work& work, size_t number) {
  const Job& job = work.jobs[number];
  const auto id = static_cast<int64_t>(number);
  auto& share = work.progress.begin(id, fmt::format("{} + {}, seed {}", job.mixer, job.pool, job.seed));
  try {
    const auto outcome = train(work.settings, job, work.digits, share, Interrupt::flag());
    if (!outcome) return;
    work.folder.write(work.settings, {job, *outcome});
    work.outcomes[number] = outcome;
    work.progress.end(id, fmt::format("{:.2f} % in {}", 100 * outcome->accuracy, duration(outcome->train_seconds)));
  } catch (const std::exception& error) {
    work.failures[number] = reason_of(error);
    work.progress.end(id, "failed");  // why: in the report
  }
}

void run_worker(Work& work) {
  at::set_num_threads(1);
  while (!Interrupt::flag()) {
    const size_t number = work.next++;
    if (number >= work.jobs.size()) return;
    if (!work.outcomes[number]) run_job(work, number);
  }
}

/// Settings of the run in the folder win over defaults; what the caller compares is already in `settings`.
RunFolder folder_of(const Settings& settings, const RunOptions& options) {
  if (!options.resume)
    return RunFolder::create(options.folder.empty() ? RunFolder::fresh_path() : options.folder, settings);
  return RunFolder::open(options.folder.empty() ? RunFolder::latest_path() : options.folder);
}

void count_images(Report& report, const Digits& digits) {
  const auto size = [](const std::vector<int64_t>& part) { return static_cast<int64_t>(part.size()); };
  const Settings& s = report.settings;
  report.train_images = size(digits.train) + (s.validate ? 0 : size(digits.validation));
  if (s.train_limit > 0) report.train_images = std::min(report.train_images, s.train_limit);
  report.held_images = size(s.validate ? digits.validation : digits.test);
}

}  // namespace

Report run_digits(const Settings& given, const RunOptions& options) {
  check(given);
  Report report;
  report.settings = given;
  report.settings.mixers = resolve_names(given.mixers, Role::mixer);
  report.settings.pools = resolve_names(given.pools, Role::pool);
  if (!options.resume) require_compared(report.settings);  // a run to resume may compare less than before
  const std::vector<Job> jobs = plan(report.settings, report.skipped);
  if (jobs.empty()) fail("arena", "a mixer and a pool that go together", report.skipped.front().reason);
  const Digits digits = load_digits(options.data);
  count_images(report, digits);
  if (report.train_images == 0 || report.held_images == 0)
    fail("arena", "images for training and for the held-out part (4 of a digit; 5 of one with validate) in digits.csv",
         fmt::format("{} images: {} for training, {} held out", digits.labels.size(0), report.train_images,
                     report.held_images));

  const RunFolder folder = folder_of(report.settings, options);
  report.folder = folder.path();
  report.planned = static_cast<int64_t>(jobs.size());
  std::vector<std::optional<Outcome>> outcomes(jobs.size());
  int64_t done = 0;
  for (size_t i = 0; i < jobs.size(); ++i)
    if ((outcomes[i] = folder.read(report.settings, jobs[i]))) ++done;

  const SingleThreaded single;
  const Interrupt interrupt;
  Progress progress(report.planned, done);
  Work work{report.settings, digits, folder, jobs, std::move(outcomes), std::vector<std::string>(jobs.size()), 0,
            progress};
  const int64_t wanted = options.workers > 0 ? options.workers : cores();
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < std::min(wanted, report.planned - done); ++i)
    threads.emplace_back([&work] { run_worker(work); });
  for (auto& thread : threads) thread.join();

  for (size_t i = 0; i < jobs.size(); ++i) {
    if (work.outcomes[i]) report.finished.push_back({jobs[i], *work.outcomes[i]});
    if (!work.failures[i].empty()) report.failures.push_back({jobs[i], work.failures[i]});
  }
  report.interrupted = Interrupt::flag() && report.finished.size() + report.failures.size() < jobs.size();
  return report;
}

}  // namespace regard::arena

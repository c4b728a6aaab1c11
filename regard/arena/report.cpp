#include "regard/arena/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "regard/arena/digits_data.h"
#include "regard/arena/progress.h"
#include "regard/arena/run_folder.h"
#include "regard/base/table.h"
#include "regard/base/version.h"

namespace regard::arena {
namespace {

using nlohmann::json;

/// The seeds of one pair.
struct Row {
  std::string mixer, pool;
  std::vector<Outcome> outcomes;
};

std::vector<Row> rows_of(const Report& report) {
  std::vector<Row> rows;
  for (const auto& one : report.finished) {
    const auto it = std::find_if(rows.begin(), rows.end(), [&](const Row& row) {
      return row.mixer == one.job.mixer && row.pool == one.job.pool;
    });
    if (it != rows.end())
      it->outcomes.push_back(one.outcome);
    else
      rows.push_back({one.job.mixer, one.job.pool, {one.outcome}});
  }
  return rows;
}

double mean(const Row& row, double Outcome::*member) {
  double sum = 0;
  for (const auto& one : row.outcomes) sum += one.*member;
  return sum / static_cast<double>(row.outcomes.size());
}

/// Sample standard deviation over seeds; 0 with one seed.
double spread(const Row& row, double Outcome::*member) {
  if (row.outcomes.size() < 2) return 0;
  const double center = mean(row, member);
  double sum = 0;
  for (const auto& one : row.outcomes) sum += (one.*member - center) * (one.*member - center);
  return std::sqrt(sum / static_cast<double>(row.outcomes.size() - 1));
}

std::string grouped(int64_t number) {
  const std::string digits = std::to_string(number);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ' ';
    text += digits[i];
  }
  return text;
}

std::string accuracy_text(const Row& row) {
  const std::string center = fmt::format("{:.2f}", 100 * mean(row, &Outcome::accuracy));
  return row.outcomes.size() < 2 ? center : fmt::format("{} +- {:.2f}", center, 100 * spread(row, &Outcome::accuracy));
}

std::string held_name(const Report& report) { return report.settings.validate ? "validation" : "test"; }

}  // namespace

std::string to_table(const Report& report) {
  const Settings& s = report.settings;
  std::string text = fmt::format(
      "\nDigits: ViT of width {}, depth {}, {} heads, patch {} on 8 x 8 images, {} epochs.\n"
      "Trained on {} images, {} accuracy on the {} of the held-out split '{}' (stratified, fixed; see "
      "data/README.md).\n\n",
      s.width, s.depth, s.heads, s.patch, s.epochs, report.train_images, held_name(report), report.held_images,
      std::string(Digits::split_name) + (s.validate ? "/validation" : ""));
  std::vector<std::vector<std::string>> cells = {
      {"mixer", "pool", held_name(report) + " accuracy %", "seeds", "parameters", "training s", "inference us/image"}};
  for (const Row& row : rows_of(report))
    cells.push_back({row.mixer, row.pool, accuracy_text(row), std::to_string(row.outcomes.size()),
                     grouped(row.outcomes.front().parameters),
                     fmt::format("{:.1f}", mean(row, &Outcome::train_seconds)),
                     fmt::format("{:.1f}", 1e6 * mean(row, &Outcome::inference_seconds))});
  if (cells.size() > 1) text += table(cells, /*left=*/2);
  for (const auto& pair : report.skipped)
    text += fmt::format("skipped: {} with {}: {}\n", pair.mixer, pair.pool, pair.reason);
  for (const auto& one : report.failures)
    text += fmt::format("failed: {} with {}, seed {}: {}\n", one.job.mixer, one.job.pool, one.job.seed, one.reason);
  if (report.interrupted)
    text += fmt::format(
        "interrupted: {} of {} trainings are done and kept; go on with: regard arena digits --resume "
        "--run {}\n",
        report.finished.size(), report.planned, report.folder);
  return text;
}

std::string to_json(const Report& report) {
  json pairs = json::array(), skipped = json::array(), failures = json::array();
  for (const Row& row : rows_of(report)) {
    std::vector<double> accuracies;
    for (const auto& one : row.outcomes) accuracies.push_back(one.accuracy);
    pairs.push_back({{"mixer", row.mixer},
                     {"pool", row.pool},
                     {"accuracy", mean(row, &Outcome::accuracy)},
                     {"accuracy_spread", spread(row, &Outcome::accuracy)},
                     {"accuracies", accuracies},
                     {"parameters", row.outcomes.front().parameters},
                     {"train_seconds", mean(row, &Outcome::train_seconds)},
                     {"inference_seconds", mean(row, &Outcome::inference_seconds)}});
  }
  for (const auto& pair : report.skipped)
    skipped.push_back({{"mixer", pair.mixer}, {"pool", pair.pool}, {"reason", pair.reason}});
  for (const auto& one : report.failures)
    failures.push_back(
        {{"mixer", one.job.mixer}, {"pool", one.job.pool}, {"seed", one.job.seed}, {"reason", one.reason}});
  const json object = {{"task", "digits"},
                       {"version", version()},
                       {"split", Digits::split_name},
                       {"held_out", held_name(report)},
                       {"train_images", report.train_images},
                       {"held_out_images", report.held_images},
                       {"settings", json::parse(to_json(report.settings))},
                       {"pairs", pairs},
                       {"skipped", skipped},
                       {"failures", failures},
                       {"planned", report.planned},
                       {"finished", report.finished.size()},
                       {"interrupted", report.interrupted},
                       {"folder", report.folder}};
  return object.dump(2);
}

}  // namespace regard::arena

#include "regard/arena/train.h"

#include <torch/torch.h>

#include <ATen/CPUGeneratorImpl.h>

#include <chrono>
#include <cmath>

#include "regard/arena/model.h"

namespace regard::arena {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Numbers of a job: one stream for each purpose, so that a longer training draws the same first batches.
at::Generator generator_of(const Job& job, uint64_t purpose) {
  return at::make_generator<at::CPUGeneratorImpl>(0x5eedu + 1000003u * static_cast<uint64_t>(job.seed) + purpose);
}

at::Tensor indices(const std::vector<int64_t>& numbers) { return at::tensor(numbers, at::kLong); }

/// All shifts by up to `reach` pixels, zeros moving in: ((2 reach + 1)^2 n, 1, 8, 8), shift-major.
at::Tensor shifted(const at::Tensor& images, int64_t reach) {
  const double background = images.min().item<double>();
  const at::Tensor padded = at::constant_pad_nd(images, {reach, reach, reach, reach}, background);
  std::vector<at::Tensor> all;
  for (int64_t y = 0; y <= 2 * reach; ++y)
    for (int64_t x = 0; x <= 2 * reach; ++x)
      all.push_back(padded.narrow(2, y, images.size(2)).narrow(3, x, images.size(3)));
  return at::cat(all);
}

/// The training images in random order and random shifts, batch by batch.
class Batches {
 public:
  Batches(const Settings& settings, const Job& job, const Digits& digits)
      : batch_(settings.batch), generator_(generator_of(job, 1)) {
    std::vector<int64_t> chosen = digits.train;
    if (!settings.validate) chosen.insert(chosen.end(), digits.validation.begin(), digits.validation.end());
    if (settings.train_limit > 0 && settings.train_limit < static_cast<int64_t>(chosen.size()))
      chosen.resize(static_cast<size_t>(settings.train_limit));
    count_ = static_cast<int64_t>(chosen.size());
    const at::Tensor rows = indices(chosen);
    images_ = shifted(digits.images.index_select(0, rows), settings.shift);
    labels_ = digits.labels.index_select(0, rows);
    shifts_ = (2 * settings.shift + 1) * (2 * settings.shift + 1);
  }

  /// The last, smaller batch of an epoch is left out unless it is the only one.
  int64_t steps() const { return std::max<int64_t>(1, count_ / batch_); }

  std::pair<at::Tensor, at::Tensor> next() {
    if (step_ % steps() == 0) order_ = at::randperm(count_, generator_, at::TensorOptions().dtype(at::kLong));
    const int64_t start = (step_++ % steps()) * batch_;
    const at::Tensor rows = order_.narrow(0, start, std::min(batch_, count_ - start));
    const at::Tensor shift = at::randint(0, shifts_, {rows.size(0)}, generator_, at::TensorOptions().dtype(at::kLong));
    return {images_.index_select(0, shift * count_ + rows), labels_.index_select(0, rows)};
  }

 private:
  int64_t batch_, count_ = 0, shifts_ = 1, step_ = 0;
  at::Generator generator_;
  at::Tensor images_, labels_, order_;
};

/// Linear up over a tenth of the steps, then half a cosine down.
double learning_rate(const Settings& settings, int64_t step, int64_t steps) {
  const double warm = std::max(1.0, 0.1 * static_cast<double>(steps)), now = static_cast<double>(step) + 1;
  if (now < warm) return settings.learning_rate * now / warm;
  const double share = (now - warm) / std::max(1.0, static_cast<double>(steps) - warm);
  return settings.learning_rate * 0.5 * (1 + std::cos(M_PI * share));
}

torch::optim::AdamW optimizer_of(const Settings& settings, const FlatWeights& weights) {
  using torch::optim::AdamWOptions;
  std::vector<torch::optim::OptimizerParamGroup> groups;
  const auto add = [&](const at::Tensor& leaf, double decay) {
    auto options = std::make_unique<AdamWOptions>(settings.learning_rate);
    options->weight_decay(decay);
    if (leaf.numel() > 0) groups.emplace_back(std::vector<at::Tensor>{leaf}, std::move(options));
  };
  add(weights.decayed(), settings.weight_decay);
  add(weights.plain(), 0);
  return torch::optim::AdamW(groups, AdamWOptions(settings.learning_rate));
}

struct Held {
  at::Tensor images, labels;
};

Held held_out(const Settings& settings, const Digits& digits) {
  const at::Tensor rows = indices(settings.validate ? digits.validation : digits.test);
  return {digits.images.index_select(0, rows), digits.labels.index_select(0, rows)};
}

at::Tensor predict(const Instance& model, const std::vector<at::Tensor>& weights, const at::Tensor& images) {
  std::vector<at::Tensor> logits;
  for (const at::Tensor& part : images.split(128)) {
    Context context;
    logits.push_back(model.forward(weights, part, context));
  }
  return at::cat(logits);
}

void measure(const Instance& model, const FlatWeights& flat, const Held& held, Outcome& outcome) {
  const at::NoGradGuard no_grad;
  const auto weights = flat.views();
  const at::Tensor predicted = predict(model, weights, held.images).argmax(-1);
  outcome.accuracy = predicted.eq(held.labels).to(at::kDouble).mean().item<double>();
  // The fastest of three: the first meets cold caches, any may meet a busy machine.
  double fastest = std::numeric_limits<double>::infinity();
  for (int repeat = 0; repeat < 3; ++repeat) {
    const auto start = Clock::now();
    predict(model, weights, held.images);
    fastest = std::min(fastest, seconds_since(start));
  }
  outcome.inference_seconds = fastest / static_cast<double>(held.images.size(0));
}

}  // namespace

std::optional<Outcome> train(const Settings& settings, const Job& job, const Digits& digits,
                             std::atomic<double>& progress, const std::atomic<bool>& stop) {
  const auto model = model_of(settings, job.mixer, job.pool);
  const FlatWeights weights(*model, generator_of(job, 0));
  at::Generator streams = generator_of(job, 2);
  Batches batches(settings, job, digits);
  auto optimizer = optimizer_of(settings, weights);
  const auto loss_options = torch::nn::functional::CrossEntropyFuncOptions().label_smoothing(0.1);
  const int64_t steps = settings.epochs * batches.steps();

  Outcome outcome;
  outcome.parameters = weights.count();
  const auto start = Clock::now();
  for (int64_t step = 0; step < steps; ++step) {
    if (stop) return std::nullopt;
    const auto [images, labels] = batches.next();
    Context context;
    context.training = true;
    context.seed = at::randint(int64_t{1} << 62, {}, streams, at::TensorOptions().dtype(at::kLong));
    const at::Tensor logits = model->forward(weights.views(), images, context);
    const at::Tensor loss = torch::nn::functional::cross_entropy(logits, labels, loss_options);
    optimizer.zero_grad();
    loss.backward();
    torch::nn::utils::clip_grad_norm_({weights.decayed(), weights.plain()}, 1.0);
    for (auto& group : optimizer.param_groups())
      static_cast<torch::optim::AdamWOptions&>(group.options()).lr(learning_rate(settings, step, steps));
    optimizer.step();
    if (step >= steps - batches.steps())
      outcome.final_loss += loss.item<double>() / static_cast<double>(batches.steps());
    progress = static_cast<double>(step + 1) / static_cast<double>(steps);
  }
  outcome.train_seconds = seconds_since(start);
  measure(*model, weights, held_out(settings, digits), outcome);
  return outcome;
}

}  // namespace regard::arena

#pragma once

#include "regard/nn/mechanism.h"

/// The plain pools: (B, N, D) tokens, or a map (B, D, H, W), to one vector a sample (B, D).
///
/// Common to all: any floating dtype; `lengths` (B) int64 counts the tokens of each row, prefix included, and the rest
/// does not exist (a row without tokens gives zeros and zero gradients). `context.prefix` tokens in front (class,
/// registers) are left out unless `include_prefix`. Results do not depend on the order of the tokens.
/// Errors: width <= 0, x of another width, no tokens at all, and what each pool adds below.
namespace regard {

/// y = x_0.  ViT's class token (Dosovitskiy et al., 2020); needs prefix >= 1.
struct ClassToken {
  struct Config {
    int64_t width = 0;  ///< D
    void fields(Fields& f);
    void validate() const;
  };
  static Info info();
  static void declare(const Config& config, Declaration& weights);
  static at::Tensor forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context);
};

/// y = (1/N) sum_n x_n.  Global average pooling (Lin et al., 2013, Network in Network).
struct MeanPool {
  struct Config {
    int64_t width = 0;
    bool include_prefix = false;
    void fields(Fields& f);
    void validate() const;
  };
  static Info info();
  static void declare(const Config& config, Declaration& weights);
  static at::Tensor forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context);
};

/// y_d = max_n x_nd; the gradient goes to the first largest token.
struct MaxPool {
  using Config = MeanPool::Config;
  static Info info();
  static void declare(const Config& config, Declaration& weights);
  static at::Tensor forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context);
};

/// y_d = ((1/N) sum_n max(x_nd, epsilon)^p)^(1/p).  GeM (Radenovic et al., 2017); p = 1 is the mean, p -> inf the max.
///
/// A real power needs a positive base: entries below epsilon, all negative ones among them, count as epsilon and get no
/// gradient. Put it behind a ReLU, or use log-sum-exp for signed features. Weight: p (1), only when `learned`.
struct GeneralizedMeanPool {
  struct Config {
    int64_t width = 0;
    bool include_prefix = false;
    double p = 3;           ///< not 0
    bool learned = true;
    double epsilon = 1e-6;  ///< > 0
    void fields(Fields& f);
    void validate() const;
  };
  static Info info();
  static void declare(const Config& config, Declaration& weights);
  static at::Tensor forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context);
};

/// y_d = (1/r) log((1/N) sum_n exp(r x_nd)).  Pinheiro & Collobert, 2015; r -> 0 is the mean, r -> inf the max.
///
/// Signed features are fine; the largest term is taken out before exp, so nothing overflows. Weight: r (1), only when
/// `learned` (start at r = 10 then, as SimPool's comparison does).
struct LogSumExpPool {
  struct Config {
    int64_t width = 0;
    bool include_prefix = false;
    double r = 1;  ///< not 0
    bool learned = false;
    void fields(Fields& f);
    void validate() const;
  };
  static Info info();
  static void declare(const Config& config, Declaration& weights);
  static at::Tensor forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context);
};

}  // namespace regard

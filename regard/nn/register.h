#pragma once

// The type erasure behind REGARD_MECHANISM; included by mechanism.h, of no interest to a reader of mechanisms.

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace regard::detail {

/// A Config behind a visitor: filled from JSON, printed as canonical JSON. Defined in config_json.cpp (JSON stays
/// there).
void read_config(const std::string& function, const std::string& json, const std::function<void(Fields&)>& visit);
std::string print_config(const std::function<void(Fields&)>& visit);
std::vector<ConfigField> describe_config(const std::function<void(Fields&)>& visit);
/// The member `width`, which must be positive; 0 when there is none (a host).
int64_t width_of(const std::string& function, const std::function<void(Fields&)>& visit);

/// Checks common to all mechanisms: weights' number and shapes, x's rank and width, known inputs and outputs, grid,
/// prefix.
void check_call(const Info& info, int64_t width, const std::vector<WeightDeclaration>& declared, at::TensorList weights,
                const at::Tensor& x, const Context& context);

/// Registers while a library is being loaded, where an exception would end the process: a refusal is kept and thrown
/// by the next look into the registry.
void register_at_load(std::unique_ptr<Mechanism> mechanism) noexcept;

/// Instances by configuration text, each made once.
class Cache {
 public:
  std::shared_ptr<const Instance> get(const std::string& key,
                                      const std::function<std::shared_ptr<const Instance>()>& make);
  Cache();
  ~Cache();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

template <class M>
class InstanceOf final : public Instance {
 public:
  InstanceOf(const Info& info, const std::string& json) : info_(info) {
    read_config(info.id, json, [this](Fields& f) { config_.fields(f); });
    width_ = width_of(info.id, [this](Fields& f) { config_.fields(f); });
    config_.validate();
    text_ = print_config([this](Fields& f) { config_.fields(f); });
    Declaration declaration;
    M::declare(config_, declaration);
    declared_ = declaration.all();
    if constexpr (requires { M::caches(config_); }) caches_ = M::caches(config_);
  }
  const Info& info() const override { return info_; }
  const std::string& config() const override { return text_; }
  const std::vector<WeightDeclaration>& weights() const override { return declared_; }
  const std::vector<CacheStream>& caches() const override { return caches_; }
  at::Tensor forward(at::TensorList weights, const at::Tensor& x, Context& context) const override {
    check_call(info_, width_, declared_, weights, x, context);
    context.open(info_.id, caches_, x);
    at::Tensor y = M::forward(config_, Weights(declared_, weights), x, context);
    context.close(info_.id);
    return y;
  }

 private:
  const Info& info_;
  typename M::Config config_;
  std::string text_;
  int64_t width_ = 0;
  std::vector<WeightDeclaration> declared_;
  std::vector<CacheStream> caches_;
};

template <class M>
class MechanismOf final : public Mechanism {
 public:
  MechanismOf() : info_(M::info()) {}
  const Info& info() const override { return info_; }
  std::shared_ptr<const Instance> configure(const std::string& json) const override {
    return cache_.get(json, [&] { return std::make_shared<InstanceOf<M>>(info_, json); });
  }
  std::vector<ConfigField> config_fields() const override {
    typename M::Config config;
    return describe_config([&](Fields& f) { config.fields(f); });
  }
  std::string default_config() const override {
    typename M::Config config;
    return print_config([&](Fields& f) { config.fields(f); });
  }

 private:
  Info info_;
  mutable Cache cache_;
};

}  // namespace regard::detail

/// Registers mechanism M when its library is loaded.
#define REGARD_MECHANISM(M)                                                                   \
  namespace {                                                                                 \
  const bool registered_##M = [] {                                                            \
    ::regard::detail::register_at_load(std::make_unique<::regard::detail::MechanismOf<M>>()); \
    return true;                                                                              \
  }();                                                                                        \
  }

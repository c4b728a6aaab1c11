#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace regard {

/// A visitor of a Config's members. A Config is a plain struct with defaults and one function that names its members:
///
///     struct Config {
///       int64_t width = 0;
///       bool causal = false;
///       void fields(Fields& f) {
///         f("width", width, "model width D");
///         f("causal", causal, "query i sees keys j <= i");
///       }
///     };
///
/// From it come JSON in and out, unknown-key errors with suggestions, and the documentation. A member `width` is the
/// model width D: it must be given (> 0), and x is checked against it.
class Fields {
 public:
  virtual ~Fields() = default;
  virtual void operator()(const char* name, bool& value, const char* doc) = 0;
  virtual void operator()(const char* name, int64_t& value, const char* doc) = 0;
  virtual void operator()(const char* name, double& value, const char* doc) = 0;
  virtual void operator()(const char* name, std::string& value, const char* doc) = 0;
  virtual void operator()(const char* name, std::optional<bool>& value, const char* doc) = 0;
  virtual void operator()(const char* name, std::optional<double>& value, const char* doc) = 0;
  virtual void operator()(const char* name, std::optional<int64_t>& value, const char* doc) = 0;
  /// A single integer is read as a list of one (an image size given once for height and width).
  virtual void operator()(const char* name, std::vector<int64_t>& value, const char* doc) = 0;
  virtual void operator()(const char* name, std::vector<std::string>& value, const char* doc) = 0;
  /// A nested JSON object, kept as text (the configuration of a mechanism inside a host).
  virtual void nested(const char* name, std::string& json, const char* doc) = 0;
};

}  // namespace regard

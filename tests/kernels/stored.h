#pragma once

#include <deque>
#include <limits>
#include <string>
#include <vector>

#include "regard/kernels/cpu/few_queries_storage.h"
#include "tests/kernels/run.h"

/// Problems in memory as the kernels read them.
namespace regard::kernels::testing {

/// A (B, H, L, D) array of S in some layout; what is no element is NaN.
template <class S>
struct Stored {
  std::vector<S> memory;
  Array4<S> array;
  std::vector<int64_t> sizes;

  Stored(const std::vector<int64_t>& s, Layout layout) : sizes(s) {
    const int64_t B = s[0], H = s[1], L = s[2], D = s[3];
    const bool apart = layout == Layout::gaps || layout == Layout::rows_apart;
    const bool reversed = layout == Layout::gaps;
    const bool inside = layout == Layout::heads_inside || layout == Layout::rows_apart;
    const int64_t row = apart ? 2 * D + 3 : D;
    array = {nullptr, H * L * row, inside ? row : L * row, inside ? H * row : row, reversed ? -2 : 1};
    memory.assign(static_cast<size_t>(B * H * L * row + 1), stored<S>(std::numeric_limits<double>::quiet_NaN()));
    array.data = memory.data() + (reversed && D > 0 ? 2 * (D - 1) : 0);
  }
  Stored(const Tensor& tensor, Layout layout) : Stored(tensor.sizes, layout) {
    each([&](S& x, size_t at) { x = stored<S>(tensor.data[at]); });
  }

  Array4<const S> read_only() const { return {array.data, array.batch, array.head, array.row, array.column}; }

  Tensor load() {
    Tensor tensor = filled(sizes);
    each([&](const S& x, size_t at) { tensor.data[at] = element<double>(x); });
    return tensor;
  }

 private:
  template <class F>
  void each(const F& body) {
    size_t at = 0;
    for (int64_t b = 0; b < sizes[0]; ++b) {
      for (int64_t h = 0; h < sizes[1]; ++h) {
        for (int64_t l = 0; l < sizes[2]; ++l) {
          for (int64_t d = 0; d < sizes[3]; ++d) {
            body(array.data[b * array.batch + h * array.head + l * array.row + d * array.column], at++);
          }
        }
      }
    }
  }
};

template <class T>
Tensor load(const std::vector<T>& values, std::vector<int64_t> sizes) {
  Tensor tensor{std::move(sizes), {}};
  tensor.data.assign(values.begin(), values.end());
  return tensor;
}

/// Captured tensors as the call sees them: reals in T, integers as int64, booleans as bytes. Those of reals get
/// gradients where these are wanted.
template <class T>
struct StoredCaptures {
  std::deque<std::vector<T>> reals, gradients;
  std::deque<std::vector<int64_t>> integers;
  std::deque<std::vector<uint8_t>> booleans;
  std::vector<Capture> captures;

  StoredCaptures(const Problem& problem, const AttentionSpec& spec, bool with_gradients) {
    for (const std::string& name : spec.captures()) add(name, problem.captures.at(name), with_gradients);
  }

 private:
  void add(const std::string& name, const Captured& captured, bool with_gradient) {
    Capture capture;
    capture.name = name;
    capture.sizes = captured.values.sizes;
    capture.strides.assign(capture.sizes.size(), 1);
    for (size_t k = capture.sizes.size(); k-- > 1;) capture.strides[k - 1] = capture.strides[k] * capture.sizes[k];
    const auto& data = captured.values.data;
    if (captured.type == Type::real) {
      capture.data = reals.emplace_back(data.begin(), data.end()).data();
      capture.element = sizeof(T) == 4 ? Element::float32 : Element::float64;
      if (with_gradient) capture.gradient = gradients.emplace_back(data.size(), T(0)).data();
    } else if (captured.type == Type::integer) {
      capture.data = integers.emplace_back(data.begin(), data.end()).data();
      capture.element = Element::int64;
    } else {
      capture.data = booleans.emplace_back(data.begin(), data.end()).data();
      capture.element = Element::boolean;
    }
    captures.push_back(capture);
  }
};

}  // namespace regard::kernels::testing

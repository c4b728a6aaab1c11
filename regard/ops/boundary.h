#pragma once

#include <ATen/ATen.h>

#include <utility>

#include "regard/base/error.h"

/// The door between Regard and torch's dispatcher: regard::Error becomes c10::ValueError on the way in (Python sees
/// ValueError) and regard::Error again on the way out to C++ callers.
namespace regard {

template <auto Function>
struct Guarded;

template <class Result, class... Arguments, Result (*Function)(Arguments...)>
struct Guarded<Function> {
  static Result call(Arguments... arguments) {
    try {
      return Function(std::forward<Arguments>(arguments)...);
    } catch (const Error& error) {
      TORCH_CHECK_VALUE(false, error.what());
    }
  }
};

/// The kernel to register for `Function`: m.impl("attention", guarded<&attention_cpu>).
template <auto Function>
inline constexpr auto guarded = &Guarded<Function>::call;

/// Runs body() and gives C++ callers the regard::Error that a dispatched op refused with.
template <class Body>
auto rethrow_as_error(Body&& body) -> decltype(body()) {
  try {
    return body();
  } catch (const c10::ValueError& error) {
    throw Error(error.what_without_backtrace());
  }
}

}  // namespace regard

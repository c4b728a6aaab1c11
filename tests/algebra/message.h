#pragma once

#include <gtest/gtest.h>

#include <string>

#include "regard/base/error.h"

/// The text of the regard::Error that `body` throws; "" when it throws none.
template <class Body>
std::string message_of(Body body) {
  try {
    body();
  } catch (const regard::Error& error) {
    return error.what();
  }
  return "";
}

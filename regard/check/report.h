#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "regard/check/findings.h"
#include "regard/check/theorem.h"

namespace regard::checking {

/// A number as JSON; the text "infinite" for one that JSON cannot hold.
nlohmann::ordered_json number(double value);

/// The report's entry of one theorem.
nlohmann::ordered_json entry(const Theorem& theorem, const Findings& findings);
nlohmann::ordered_json counterexample_json(const Counterexample& example);
nlohmann::ordered_json not_applicable(const std::string& theorem, const std::string& statement,
                                      const std::string& reason);
nlohmann::ordered_json failed_entry(const std::string& theorem, const std::string& statement,
                                    const std::string& reason);

}  // namespace regard::checking

#include "regard/ops/tap_name.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <string_view>

#include "regard/base/error.h"
#include "regard/base/names.h"

namespace regard::ops {
namespace {

enum class After : uint8_t { nothing, number, size, list, maybe_list };

struct Form {
  const char* name;
  TapKind kind;
  After after;
  const char* shown;
};

constexpr std::array<Form, 15> forms = {{
    {"entropy", TapKind::entropy, After::nothing, "entropy"},
    {"effective_keys", TapKind::effective_keys, After::nothing, "effective_keys"},
    {"max", TapKind::max, After::nothing, "max"},
    {"mass", TapKind::mass, After::maybe_list, "mass:KEYS"},
    {"marked_mass", TapKind::marked_mass, After::nothing, "marked_mass"},
    {"own_mass", TapKind::own_mass, After::nothing, "own_mass"},
    {"mean_distance", TapKind::mean_distance, After::nothing, "mean_distance"},
    {"sum_of_squares", TapKind::sum_of_squares, After::nothing, "sum_of_squares"},
    {"column_sums", TapKind::column_sums, After::nothing, "column_sums"},
    {"column_square_sums", TapKind::column_square_sums, After::nothing, "column_square_sums"},
    {"top_k", TapKind::top_k, After::number, "top_k:K"},
    {"top_k_index", TapKind::top_k_index, After::number, "top_k_index:K"},
    {"rows", TapKind::rows, After::maybe_list, "rows:ROWS"},
    {"blocks", TapKind::blocks, After::size, "blocks:PxQ"},
    {"offsets", TapKind::offsets, After::number, "offsets:R"},
}};

/// A whole text that is one number; one of more letters than 9 digits and a sign is no index of a token.
bool read_number(std::string_view text, int64_t& value) {
  if (text.empty() || text.size() > 10) return false;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

int64_t positive(const std::string& whole, std::string_view text, int64_t least) {
  int64_t value = 0;
  if (!read_number(text, value) || value < least)
    fail("tap", "a number >= " + std::to_string(least) + " in '" + whole + "'", "'" + std::string(text) + "'");
  return value;
}

std::pair<int64_t, int64_t> range_of(const TapName& tap, std::string_view text) {
  const auto refuse = [&] {
    fail("tap", "a list of numbers and ranges such as '0,4,8-15' in '" + tap.text + "'", "'" + std::string(text) + "'");
  };
  const size_t dash = text.find('-', 1);
  int64_t first = 0, last = 0;
  if (dash == std::string_view::npos) {
    if (!read_number(text, first)) refuse();
    last = first;
  } else if (!read_number(text.substr(0, dash), first) || !read_number(text.substr(dash + 1), last) || first < 0 ||
             last < first) {
    refuse();
  }
  if (first < 0 && tap.kind == TapKind::mass)
    fail("tap", "key positions >= 0 in '" + tap.text + "'", "'" + std::string(text) + "'");
  return {first, last};
}

void read_list(TapName& tap, std::string_view text) {
  while (true) {
    const size_t comma = text.find(',');
    tap.ranges.push_back(range_of(tap, text.substr(0, comma)));
    if (comma == std::string_view::npos) return;
    text.remove_prefix(comma + 1);
  }
}

}  // namespace

std::vector<std::string> tap_forms() {
  std::vector<std::string> shown;
  for (const Form& form : forms) shown.emplace_back(form.shown);
  return shown;
}

TapName parse_tap(const std::string& text) {
  TapName tap;
  tap.text = text;
  const size_t colon = text.find(':');
  const std::string name = text.substr(0, colon);
  const std::string_view rest = colon == std::string::npos ? "" : std::string_view(text).substr(colon + 1);
  const auto form = std::find_if(forms.begin(), forms.end(), [&](const Form& f) { return name == f.name; });
  if (form == forms.end()) {
    std::vector<std::string> names;
    for (const Form& f : forms) names.emplace_back(f.name);
    fail("tap", "one of " + quoted_list(tap_forms()), "'" + text + "'" + suggestion(name, names));
  }
  tap.kind = form->kind;
  tap.given = colon != std::string::npos;
  const bool takes = form->after != After::nothing, needs = takes && form->after != After::maybe_list;
  if ((tap.given && !takes) || (!tap.given && needs))
    fail("tap", std::string("the form '") + form->shown + "'", "'" + text + "'");
  if (!tap.given) return tap;
  if (form->after == After::number) {
    tap.first = positive(text, rest, tap.kind == TapKind::offsets ? 0 : 1);
  } else if (form->after == After::size) {
    const size_t by = rest.find('x');
    if (by == std::string_view::npos) fail("tap", std::string("the form '") + form->shown + "'", "'" + text + "'");
    tap.first = positive(text, rest.substr(0, by), 1);
    tap.second = positive(text, rest.substr(by + 1), 1);
  } else {
    read_list(tap, rest);
  }
  return tap;
}

}  // namespace regard::ops

#include "regard/ops/executor_offers.h"

#include <algorithm>
#include <set>

#include "regard/base/error.h"

namespace regard {
namespace ops {
namespace {

std::vector<Expr*> fields_of(AttentionSpec& spec) {
  std::vector<Expr*> out = {&spec.score, &spec.keep, &spec.weight, &spec.counted};
  for (auto& pair : spec.pair_outputs) {
    out.push_back(&pair.value);
    out.push_back(&pair.bucket);
  }
  return out;
}

bool reads(const Expr& expr, Op op) {
  const auto entries = flatten({expr}).entries;
  return std::any_of(entries.begin(), entries.end(), [op](const auto& e) { return e.expr.op() == op; });
}

/// Local indices mean nothing beyond the tensors they index.
bool reads_local_index(const Expr& expr) { return reads(expr, Op::row) || reads(expr, Op::column); }

/// One read of a capture: the dimensions that follow the rows and the columns.
struct Reading {
  std::vector<int64_t> rows, columns;
  bool other = false;  ///< row() or column() inside a larger index
};

Reading reading_of(const Expr& read) {
  Reading out;
  for (size_t d = 0; d < read.node().args.size(); ++d) {
    const Expr& index = read.node().args[d];
    if (index.op() == Op::row)
      out.rows.push_back(static_cast<int64_t>(d));
    else if (index.op() == Op::column)
      out.columns.push_back(static_cast<int64_t>(d));
    else
      out.other = out.other || reads_local_index(index);
  }
  return out;
}

std::string refusal_of(const std::string& name, const Reading& reading) {
  if (reading.other) return "capture '" + name + "' is read at an index that contains row() or column()";
  if (!reading.rows.empty() && !reading.columns.empty())
    return "capture '" + name + "' is read by row() and column() together: no shard holds its entries of all pairs";
  return "";
}

class Splitter {
 public:
  explicit Splitter(Sides& sides) : sides_(sides) {}

  void run() {
    std::vector<std::pair<Expr, Expr>> renamed, hidden;
    std::vector<Expr> roots;
    for (const Expr* field : fields_of(sides_.spec))
      if (field->defined()) roots.push_back(*field);
    for (const auto& entry : flatten(roots).entries)
      if (entry.expr.op() == Op::capture) see(entry.expr, renamed, hidden);
    for (Expr* field : fields_of(sides_.spec)) {
      if (!field->defined()) continue;
      if (reads_local_index(substitute(*field, hidden)))
        refuse("row() or column() is read outside the index of a capture; query() and key() have a meaning there");
      *field = substitute(*field, renamed);
    }
    see_positions(sides_.spec.positions.query, row());
    see_positions(sides_.spec.positions.key, column());
  }

 private:
  void refuse(const std::string& why) {
    if (sides_.refusal.empty()) sides_.refusal = why;
  }

  /// A capture beside the keys gets a name of its own.
  std::string beside_keys(const std::string& name, const std::vector<int64_t>& dims) {
    const std::string own = name + ".keys";
    const auto given = sides_.arguments.named_captures.find(name);
    if (given != sides_.arguments.named_captures.end()) sides_.arguments.named_captures[own] = given->second;
    const auto [it, fresh] = sides_.key_dims.try_emplace(own, dims);
    if (!fresh && it->second != dims) refuse("capture '" + name + "' is read by column() in different dimensions");
    return own;
  }

  void see(const Expr& read, std::vector<std::pair<Expr, Expr>>& renamed, std::vector<std::pair<Expr, Expr>>& hidden) {
    const Reading reading = reading_of(read);
    const std::string& name = read.node().name;
    const std::string why = refusal_of(name, reading);
    if (!why.empty()) refuse(why);
    hidden.emplace_back(read, capture("hidden", read.type(), {}));
    if (!reading.columns.empty())
      renamed.emplace_back(read, capture(beside_keys(name, reading.columns), read.type(), read.node().args));
  }

  void see_positions(Positions& positions, const Expr& index) {
    if (positions.tensor.empty()) return;
    const Reading reading = reading_of(positions.at(index));
    if (!reading.columns.empty()) positions.tensor = beside_keys(positions.tensor, reading.columns);
  }

  Sides& sides_;
};

}  // namespace

Sides sides_of(const AttentionSpec& spec, const AttentionArguments& by_name) {
  Sides sides{spec, by_name, {}, ""};
  Splitter(sides).run();
  return sides;
}

}  // namespace ops

std::vector<Offer> offers(const AttentionSpec& spec) {
  return {{"merge", "parts of the keys are absorbed into states that merge", ""},
          {"commutative", "in any order", ""},
          {"shards", "queries and keys may lie on different devices", ops::sides_of(spec, {}).refusal}};
}

std::string to_string(const std::vector<Offer>& all) {
  std::string yes, no;
  for (const auto& offer : all) {
    if (offer.refusal.empty())
      yes += (yes.empty() ? "" : ", ") + offer.name;
    else
      no += "; not " + offer.name + ": " + offer.refusal;
  }
  return yes + no;
}

void require_offers(const std::string& executor, const AttentionSpec& spec, const std::vector<std::string>& wanted) {
  for (const auto& offer : offers(spec)) {
    if (offer.refusal.empty() || std::find(wanted.begin(), wanted.end(), offer.name) == wanted.end()) continue;
    fail(executor, "a spec that offers '" + offer.name + "' (" + offer.doc + ")", "one where " + offer.refusal);
  }
}

}  // namespace regard

#include "regard/algebra/spec.h"
#include "regard/base/error.h"

namespace regard::masks {

Expr causal() { return query() >= key(); }

Expr window(int64_t left, int64_t right) {
  for (const int64_t side : {left, right}) {
    if (side < -1) fail("masks::window", "a width of at least 0, or -1 for unbounded", std::to_string(side));
  }
  Expr kept = true;
  if (left >= 0) kept = kept & (query() - key() <= left);
  if (right >= 0) kept = kept & (key() - query() <= right);
  return kept;
}

Expr lengths(const std::string& name) { return column() < capture(name, Type::integer, {batch()}); }

Expr documents(const std::string& query_ids, const std::string& key_ids) {
  return capture(query_ids, Type::integer, {batch(), row()}) == capture(key_ids, Type::integer, {batch(), column()});
}

}  // namespace regard::masks

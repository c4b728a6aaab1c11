#include <array>

#include "regard/algebra/expr.h"
#include "regard/base/error.h"
#include "regard/base/names.h"

namespace regard {
namespace {

constexpr std::array kOpNames = {
    "constant",  "scale",   "dot",     "batch",       "head",       "query",       "key",   "row",  "column",
    "batches",   "heads",   "queries", "keys",        "capture",    "add",         "sub",   "mul",  "div",
    "floor_div", "mod",     "neg",     "min",         "max",        "abs",         "floor", "exp",  "log",
    "tanh",      "sigmoid", "sqrt",    "pow",         "cos",        "sin",         "lt",    "le",   "gt",
    "ge",        "eq",      "ne",      "logical_and", "logical_or", "logical_not", "where", "cast",
};
static_assert(kOpNames.size() == static_cast<size_t>(Op::cast) + 1);

constexpr std::array kTypeNames = {"bool", "int", "float"};

template <size_t count>
size_t find(const std::array<const char*, count>& names, const std::string& name, const char* function,
            const char* expected) {
  for (size_t i = 0; i < count; ++i) {
    if (name == names[i]) return i;
  }
  fail(function, expected, "'" + name + "'" + suggestion(name, {names.begin(), names.end()}));
}

}  // namespace

const char* name_of(Op op) { return kOpNames[static_cast<size_t>(op)]; }
const char* name_of(Type type) { return kTypeNames[static_cast<size_t>(type)]; }

Op op_from_name(const std::string& name) {
  return static_cast<Op>(find(kOpNames, name, "op_from_name", "the name of an operator"));
}

Type type_from_name(const std::string& name) {
  return static_cast<Type>(find(kTypeNames, name, "type_from_name", "'bool', 'int' or 'float'"));
}

}  // namespace regard

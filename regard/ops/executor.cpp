#include "regard/ops/executor.h"

#include <map>
#include <mutex>

#include "regard/base/error.h"
#include "regard/base/names.h"

namespace regard {
namespace {

struct Table {
  std::mutex mutex;
  std::map<std::string, std::pair<std::string, ExecutorFactory>> by_name;
};
Table& table() {
  static Table& instance = *new Table;  // factories may lie in libraries that close in any order
  return instance;
}

}  // namespace

at::Tensor Executor::positions(const c10::SymInt& tokens, const at::TensorOptions& options) {
  return at::arange(at::Scalar(tokens), options.dtype(at::kLong).requires_grad(std::nullopt));
}

void register_executor(const std::string& name, const std::string& doc, ExecutorFactory make) {
  const std::lock_guard lock(table().mutex);
  table().by_name[name] = {doc, std::move(make)};
}

std::vector<ExecutorInfo> executors() {
  const std::lock_guard lock(table().mutex);
  std::vector<ExecutorInfo> list = {{"local", "one call on the tokens that lie here"}};
  for (const auto& [name, entry] : table().by_name) list.push_back({name, entry.first});
  return list;
}

std::shared_ptr<Executor> make_executor(const std::string& text) {
  if (text.empty() || text == "local") return nullptr;
  const size_t colon = text.find(':');
  const std::string name = text.substr(0, colon), rest = colon == std::string::npos ? "" : text.substr(colon + 1);
  ExecutorFactory make;
  std::vector<std::string> names;
  for (const auto& info : executors()) names.push_back(info.name);
  {
    const std::lock_guard lock(table().mutex);
    const auto it = table().by_name.find(name);
    if (it != table().by_name.end()) make = it->second.second;
  }
  if (!make) fail("executor", "one of " + quoted_list(names), "'" + name + "'" + suggestion(name, names));
  return make(rest);
}

}  // namespace regard

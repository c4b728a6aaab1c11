// The streams of a decode: given as inputs "cache.NAME", returned as outputs of the same names.

#include "regard/base/error.h"
#include "regard/base/names.h"
#include "regard/nn/context.h"
#include "regard/nn/shapes.h"
#include "regard/ops/executor.h"

namespace regard {
namespace {

constexpr std::string_view prefix_of_caches = "cache.";
std::string key_of(const std::string& stream) { return std::string(prefix_of_caches) + stream; }

std::string shape_of(const CacheStream& stream) {
  std::string text = "(B";
  for (size_t i = 0; i < stream.entry.size(); ++i) {
    if (stream.kind != CacheStream::Kind::state && i + 1 == stream.entry.size()) text += ", tokens";
    text += ", " + std::to_string(stream.entry[i]);
  }
  return text + ")";
}

bool fits(const CacheStream& stream, const at::Tensor& t, const at::Tensor& x) {
  const bool tokens = stream.kind != CacheStream::Kind::state;
  const auto rank = static_cast<int64_t>(stream.entry.size()) + 1 + tokens;
  if (t.dim() != rank || t.sym_size(0) != x.sym_size(0)) return false;
  for (size_t i = 0; i < stream.entry.size(); ++i) {
    const int64_t dim = static_cast<int64_t>(i) + 1 + (tokens && i + 1 == stream.entry.size());
    if (t.sym_size(dim) != stream.entry[i]) return false;
  }
  return true;
}

}  // namespace

void Context::open_cache(const at::Tensor& x) {
  std::vector<std::string> names;
  for (const auto& stream : streams_) names.push_back(key_of(stream.name));
  const auto known = [&](const std::string& name) {
    if (streams_.empty()) fail(id_, "no cache: this configuration keeps nothing between steps", "'" + name + "'");
    for (const auto& stream : streams_)
      if (key_of(stream.name) == name) return &stream;
    fail(id_, "streams among " + quoted_list(names), "'" + name + "'" + suggestion(name, names));
  };
  size_t given = 0;
  for (const auto& [name, tensor] : inputs) {
    if (!name.starts_with(prefix_of_caches) || !tensor.defined()) continue;
    const CacheStream* stream = known(name);
    if (!fits(*stream, tensor, x)) fail(id_, name + " " + shape_of(*stream), describe(tensor));
    ++given;
    decoding_ = true;
  }
  for (const auto& name : wanted) {
    if (!name.starts_with(prefix_of_caches)) continue;
    known(name);
    decoding_ = true;
  }
  if (!decoding_) return;
  if (given != 0 && given != streams_.size())
    fail(id_, "all streams of the cache, " + quoted_list(names), std::to_string(given) + " of them");
  require(!executor || !executor->sharded(), id_.c_str(), "a cache or tokens on shards", "both");
  require(!input("lengths").defined(), id_.c_str(), "a cache or lengths", "both");
}

const CacheStream& Context::declared(const std::string& name, CacheStream::Kind kind) const {
  for (const auto& stream : streams_)
    if (stream.name == name && stream.kind == kind) return stream;
  fail(id_, "a stream that caches(config) declares with this kind", "'" + name + "'");
}

at::Tensor Context::joined(const std::string& name, CacheStream::Kind kind, const at::Tensor& entries) {
  if (!decoding_) return entries;
  declared(name, kind);
  const at::Tensor before = input(key_of(name));
  if (!before.defined()) return entries;
  if (before.scalar_type() != entries.scalar_type())
    fail(id_, key_of(name) + " of type " + describe(entries.scalar_type()), describe(before));
  return at::cat({before, entries}, -2);
}

at::Tensor Context::append(const std::string& name, const at::Tensor& entries) {
  const at::Tensor all = joined(name, CacheStream::Kind::append, entries);
  if (decoding_) output(key_of(name), all);
  return all;
}

at::Tensor Context::recent(const std::string& name, const at::Tensor& entries) {
  const at::Tensor all = joined(name, CacheStream::Kind::ring, entries);
  if (!decoding_) return all;
  const int64_t length = declared(name, CacheStream::Kind::ring).length;
  const c10::SymInt count = all.sym_size(-2);
  output(key_of(name), all.slice_symint(-2, count > length ? count - length : c10::SymInt(0)));
  return all;
}

at::Tensor Context::state(const std::string& name) const {
  if (!decoding_) return {};
  declared(name, CacheStream::Kind::state);
  return input(key_of(name));
}

void Context::store(const std::string& name, const at::Tensor& value) {
  if (!decoding_) return;
  declared(name, CacheStream::Kind::state);
  output(key_of(name), value);
}

c10::SymInt Context::past() const {
  if (!decoding_) return 0;
  for (const auto& stream : streams_) {
    if (stream.kind != CacheStream::Kind::append) continue;
    const at::Tensor before = input(key_of(stream.name));
    return before.defined() ? before.sym_size(-2) : c10::SymInt(0);
  }
  fail(id_, "an append stream, which counts the tokens of earlier steps", "none declared");
}

}  // namespace regard

#include "regard/nn/context.h"

#include <algorithm>

#include "regard/base/error.h"
#include "regard/base/names.h"
#include "regard/ops/executor.h"
#include "regard/ops/packed.h"

namespace regard {
namespace {

/// FNV-1a, so that a stream's number depends on its name alone, on every machine.
int64_t number_of(const std::string& name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const unsigned char letter : name) hash = (hash ^ letter) * 0x100000001b3u;
  return static_cast<int64_t>(hash >> 2);
}

}  // namespace

at::Tensor Context::input(const std::string& name) const {
  const auto it = inputs.find(name);
  return it == inputs.end() ? at::Tensor() : it->second;
}

bool Context::wants(const std::string& name) const {
  return std::find(wanted.begin(), wanted.end(), name) != wanted.end();
}

void Context::output(const std::string& name, at::Tensor value) { outputs[name] = std::move(value); }

void Context::publish(const std::string& name, const std::function<at::Tensor()>& make) {
  if (wants(name)) output(name, make());
}

void Context::loss(const std::string& name, const std::function<at::Tensor()>& make) {
  if (wants("loss." + name)) output("loss." + name, make());
}

std::string Context::layer() const {
  if (!host) return "";
  const std::string around = host->layer();
  return around.empty() ? name : around + "." + name;
}

at::Tensor Context::stream(const std::string& name) {
  if (!seed.defined())
    seed = host ? host->stream(name) : at::randint(int64_t{1} << 62, {}, at::TensorOptions().dtype(at::kLong));
  // A second call for a name is a second stream: what is drawn for one layer is not drawn again for another.
  return seed.bitwise_xor(number_of(name + "#" + std::to_string(streams++)));
}

void Context::open(const std::string& id, const std::vector<CacheStream>& streams, const at::Tensor& x) {
  id_ = id;
  streams_ = streams;
  open_cache(x);
  if (!host)
    for (auto& edit : edits) edit.reached = std::make_shared<int64_t>(0);
  const at::Tensor packed = input("cu_seqlens");
  if (!packed.defined()) return;
  check_cu_seqlens(id.c_str(), "cu_seqlens", packed, x.dim() == 3 ? x.sym_size(1) : x.sym_size(-1));
  if (x.dim() == 3 && x.sym_size(0) != 1)
    fail(id, "x of one row, (1, T, D), with cu_seqlens", std::to_string(x.size(0)) + " rows");
  require(!decoding_, id.c_str(), "a cache or packed sequences", "both");
  require(!executor || !executor->sharded(), id.c_str(), "packed sequences or tokens on shards", "both");
  for (const char* other : {"lengths", "positions", "memory_lengths"})
    require(!input(other).defined(), id.c_str(), "no lengths or positions beside cu_seqlens, which says both", other);
}

void Context::close(const std::string& id) const {
  if (input("cu_seqlens").defined() && !packed_read_)
    fail(id, "a mechanism that runs on packed sequences", "cu_seqlens for one that mixes tokens in another way");
  if (executor && executor->asked == 0)
    fail(id, "executor 'local', for a mechanism that asks an executor for nothing that spans the sequence",
         "executor '" + executor->text() + "'");
  for (const auto& name : wanted)
    if (!outputs.count(name) && !optional.count(name))
      fail(id,
           "outputs that this call computes" +
               (name.starts_with("tap.") ? " (taps of an attention it runs)" : std::string()),
           "'" + name + "'");
  if (host) return;
  for (const auto& edit : edits)
    if (edit.reached && *edit.reached == 0)
      fail(id, "edits of attentions that it runs",
           "one of " + (edit.layer.empty() ? std::string("every layer") : "layer '" + edit.layer + "'") +
               (edit.attention < 0 ? std::string() : ", attention " + std::to_string(edit.attention)) +
               ", that none is");
}

}  // namespace regard

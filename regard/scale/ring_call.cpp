#include "regard/scale/ring_call.h"

#include <c10/core/GradMode.h>

#include <sstream>

#include "regard/base/error.h"
#include "regard/ops/call.h"
#include "regard/ops/executor_offers.h"
#include "regard/ops/executor_place.h"

namespace regard::sharding {
namespace {

constexpr const char* kName = "ring";

int64_t sum_of(const std::vector<int64_t>& counts) {
  int64_t sum = 0;
  for (const int64_t count : counts) sum += count;
  return sum;
}

std::string listed(const std::vector<int64_t>& counts) {
  std::string text;
  for (const int64_t count : counts) text += (text.empty() ? "" : ", ") + std::to_string(count);
  return text;
}

/// What every rank says before anything travels.
struct Greeting {
  int64_t keys = 0, queries = 0, signature = 0, failed = 0;
};

std::vector<Greeting> greet(Transport& transport, const Greeting& own, const at::Device& device, Traffic& traffic) {
  const at::Tensor numbers = at::tensor({own.keys, own.queries, own.signature, own.failed}, at::kLong);
  traffic.metadata += static_cast<int64_t>(numbers.nbytes()) * (transport.size() - 1);
  std::vector<Greeting> all;
  for (const at::Tensor& theirs : transport.all_gather(numbers.to(device))) {
    const at::Tensor here = theirs.cpu();
    const auto* n = here.const_data_ptr<int64_t>();
    all.push_back({n[0], n[1], n[2], n[3]});
  }
  return all;
}

void check_counts(const char* what, const std::vector<int64_t>& counts, Layout layout) {
  const int64_t tokens = sum_of(counts), ranks = static_cast<int64_t>(counts.size());
  std::vector<int64_t> expected;
  for (int64_t rank = 0; rank < ranks; ++rank) expected.push_back(count_of_rank(tokens, ranks, layout, rank));
  if (counts == expected) return;
  fail(kName,
       std::string(what) + " of the ranks as token_of_rank deals " + std::to_string(tokens) + " out (" +
           name_of(layout) + "): " + listed(expected),
       listed(counts));
}

/// What must be equal on all ranks: the spec, dtypes, shapes but for the tokens, and what needs gradients.
int64_t signature_of(const RingCall& call, const RingTensors& tensors) {
  std::ostringstream text;
  text << to_json(call.spec) << call.arguments.query_offset << name_of(call.layout) << c10::GradMode::is_enabled();
  for (const at::Tensor& t : tensors.stays) {
    text << ';';
    if (t.defined()) text << toString(t.scalar_type()) << t.dim() << t.requires_grad();
  }
  for (size_t i = 0; i < tensors.travels.size(); ++i) {
    const at::Tensor& t = tensors.travels[i];
    std::vector<int64_t> sizes = t.sizes().vec();
    for (const int64_t dim : call.key_dims[i]) sizes[static_cast<size_t>(dim)] = -1;
    text << ';' << toString(t.scalar_type()) << at::IntArrayRef(sizes) << t.requires_grad();
  }
  const at::Tensor& q = tensors.stays[0];
  text << q.size(0) << ',' << q.size(1) << ',' << q.size(3);
  return static_cast<int64_t>(std::hash<std::string>{}(text.str()) >> 1);
}

/// The call without a ring around it; throws what the local op would.
RingCall local_call(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionSpec& spec,
                    const AttentionArguments& given, RingTensors& tensors) {
  require_offers(kName, spec, {"merge", "commutative", "shards"});
  require(!ops::traced(q) && ops::concrete(q), kName, "tensors that hold numbers (no tracing, no transform)", "others");
  const AttentionArguments in_lists = in_order(spec, given);
  ops::make_call(kName, q, k, v, to_json(spec), in_lists.captures, in_lists.operands,
                 given.sinks.defined() ? std::make_optional(given.sinks) : std::nullopt,
                 given.seed.defined() ? std::make_optional(given.seed) : std::nullopt, given.query_offset);
  const ops::Sides sides = ops::sides_of(spec, ops::by_name(spec, given));
  RingCall call;
  call.spec = sides.spec;
  call.arguments.path = given.path;
  call.arguments.query_offset = given.query_offset;
  tensors.stays = {q};
  tensors.travels = {k, v};
  call.key_dims = {{2}, {2}};
  for (const auto& name : sides.spec.captures()) {
    const at::Tensor& t = sides.arguments.named_captures.at(name);
    const auto dims = sides.key_dims.find(name);
    if (dims == sides.key_dims.end()) {
      call.captures.push_back(name);
      tensors.stays.push_back(t);
      continue;
    }
    for (const int64_t dim : dims->second)
      if (t.size(dim) != k.size(2))
        fail(kName,
             "capture '" + name.substr(0, name.rfind('.')) + "' of this rank's " + std::to_string(k.size(2)) +
                 " keys in dimension " + std::to_string(dim),
             std::to_string(t.size(dim)));
    call.traveling_captures.push_back(name);
    call.key_dims.push_back(dims->second);
    tensors.travels.push_back(t);
  }
  for (const auto& [name, pair] : sides.arguments.named_operands) {
    call.operands.push_back(name);
    tensors.stays.push_back(pair.first);
    tensors.travels.push_back(pair.second);
    call.key_dims.push_back({2});
  }
  tensors.stays.push_back(given.sinks);
  tensors.stays.push_back(given.seed);
  return call;
}

/// A part of the local queries against a part of the keys of one rank.
State absorb_spans(const RingCall& call, const RingTensors& tensors, const Span& rows, const Span& columns) {
  AttentionArguments arguments = call.arguments;
  size_t at = 1;
  for (const auto& name : call.captures) arguments.named_captures[name] = tensors.stays[at++];
  for (const auto& name : call.operands)
    arguments.named_operands[name].first = tensors.stays[at++].narrow(2, rows.local, rows.size());
  arguments.seed = tensors.stays.back();
  at = 2;
  for (const auto& name : call.traveling_captures) arguments.named_captures[name] = tensors.travels[at++];
  for (const auto& name : call.operands)
    arguments.named_operands[name].second = tensors.travels[at++].narrow(2, columns.local, columns.size());
  const ops::Place place{
      rows.local, rows.begin, columns.local, columns.begin, sum_of(call.query_counts), sum_of(call.key_counts)};
  const AttentionSpec spec = ops::placed(call.spec, place, arguments);
  if (columns.size() > 0 && ops::holds_no_pair(spec, arguments, rows.size(), columns.size())) return {};
  return absorb(tensors.stays[0].narrow(2, rows.local, rows.size()),
                tensors.travels[0].narrow(2, columns.local, columns.size()),
                tensors.travels[1].narrow(2, columns.local, columns.size()), spec, arguments);
}

/// The states of consecutive rows as one.
State stacked(const std::vector<State>& states) {
  if (states.size() == 1) return states[0];
  State out;
  for (size_t entry = 0; entry < states[0].names.size(); ++entry) {
    std::vector<at::Tensor> pieces;
    for (const State& state : states) pieces.push_back(state[states[0].names[entry]]);
    out.set(states[0].names[entry], at::cat(pieces, 2));
  }
  return out;
}

std::vector<Span> query_spans(const RingCall& call) {
  auto spans = spans_of_rank(sum_of(call.query_counts), call.size(), call.layout, call.rank());
  if (spans.empty()) spans.push_back({});  // no rows are a span of none
  return spans;
}

}  // namespace

std::vector<std::vector<int64_t>> RingCall::shapes(const std::vector<at::Tensor>& own, int64_t source) const {
  std::vector<std::vector<int64_t>> out;
  for (size_t i = 0; i < own.size(); ++i) {
    out.push_back(own[i].sizes().vec());
    for (const int64_t dim : key_dims[i]) out[i][static_cast<size_t>(dim)] = key_counts[static_cast<size_t>(source)];
  }
  return out;
}

std::vector<int64_t> counts_of(Transport& transport, Layout layout, int64_t own, const char* what, Traffic& traffic) {
  std::vector<int64_t> counts;
  for (const Greeting& theirs : greet(transport, {own, 0, 0, 0}, at::kCPU, traffic)) counts.push_back(theirs.keys);
  check_counts(what, counts, layout);
  return counts;
}

RingCall make_ring_call(const std::string& executor, std::shared_ptr<Transport> transport, Layout layout,
                        const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionSpec& spec,
                        const AttentionArguments& arguments, RingTensors& tensors) {
  Traffic& traffic = traffic_of(executor);
  RingCall call;
  std::exception_ptr own;
  Greeting greeting;
  try {
    call = local_call(q, k, v, spec, arguments, tensors);
    call.layout = layout;
    greeting = {k.size(2), q.size(2), signature_of(call, tensors), 0};
  } catch (const std::exception&) {
    own = std::current_exception();
    greeting.failed = 1;
  }
  // Also a rank that refuses its arguments says so, or the others would wait for it.
  const auto all = greet(*transport, greeting, q.defined() ? q.device() : at::Device(at::kCPU), traffic);
  if (own) std::rethrow_exception(own);
  for (size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank].failed)
      fail(kName, "a call that every rank accepts", "one that rank " + std::to_string(rank) + " refused");
    if (all[rank].signature != greeting.signature && all[0].signature != all[rank].signature)
      fail(kName, "one call on all ranks (spec, dtypes, shapes but for the tokens, what needs gradients)",
           "another one on rank " + std::to_string(rank));
    call.key_counts.push_back(all[rank].keys);
    call.query_counts.push_back(all[rank].queries);
  }
  for (const Greeting& theirs : all)
    if (theirs.signature != greeting.signature)
      fail(kName, "one call on all ranks (spec, dtypes, shapes but for the tokens, what needs gradients)",
           "different ones");
  check_counts("keys", call.key_counts, layout);
  check_counts("queries", call.query_counts, layout);
  call.transport = std::move(transport);
  call.traffic = &traffic;
  return call;
}

State absorb_block(const RingCall& call, const RingTensors& tensors, int64_t source) {
  std::vector<State> rows;
  bool some = false;
  for (const Span& own : query_spans(call)) {
    State state;
    for (const Span& theirs : spans_of_rank(sum_of(call.key_counts), call.size(), call.layout, source))
      state = merge(call.spec, state, absorb_spans(call, tensors, own, theirs));
    some = some || state.defined();
    rows.push_back(std::move(state));
  }
  if (!some) return {};
  size_t row = 0;
  for (const Span& own : query_spans(call)) {
    if (!rows[row].defined()) rows[row] = absorb_spans(call, tensors, own, Span{});
    ++row;
  }
  return stacked(rows);
}

State absorb_nothing(const RingCall& call, const RingTensors& tensors) {
  std::vector<State> rows;
  for (const Span& own : query_spans(call)) rows.push_back(absorb_spans(call, tensors, own, Span{}));
  return stacked(rows);
}

}  // namespace regard::sharding

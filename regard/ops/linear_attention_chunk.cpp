// One chunk of linear attention: quadratic inside, with the state that enters and the state that leaves.

#include <limits>

#include "regard/ops/call.h"
#include "regard/ops/linear_attention_parts.h"

namespace regard::ops {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Rows of a sub-block where a decay has channels: 16 x 16 x D exponentials stay in cache, and a chunk of 64 has 4.
constexpr int64_t kRows = 16;

at::Tensor counted(const c10::SymInt& n, const at::Tensor& like) {
  return at::arange(at::Scalar(n), like.options().dtype(at::kLong).requires_grad(std::nullopt));
}

/// (n, n) true where the key is later than the query; with `strict`, not earlier.
at::Tensor hidden(const c10::SymInt& n, const at::Tensor& like, bool strict) {
  const at::Tensor i = counted(n, like);
  return strict ? i.unsqueeze(1).le(i) : i.unsqueeze(1).lt(i);
}

/// The decays of a chunk, as factors; b_r = g_1 + .. + g_r. No exponent is positive.
struct Factors {
  at::Tensor in;    ///< e^b_r (n,D): from the state that enters to row r
  at::Tensor out;   ///< e^(b_n - b_r) (n,D): from row r to the state that leaves
  at::Tensor all;   ///< e^b_n (1,D)
  at::Tensor pair;  ///< scalar: e^(b_r - b_j) (n,n), 0 where j > r
  // With channels, in sub-blocks I of `rows` rows whose first is f(I):
  at::Tensor first;     ///< e^(b_r - b_f(I)) (nb,rows,D)
  at::Tensor back;      ///< e^(b_f(I) - b_j) (nb,n,D), 0 where j >= f(I)
  at::Tensor diagonal;  ///< e^(b_r - b_j) (nb,rows,rows,D), 0 where j > r
};

/// Differences are taken in float64, where cumulative sums keep them, and only then rounded.
at::Tensor exponential(const at::Tensor& difference, at::ScalarType type) { return difference.to(type).exp(); }

void add_blocks(Factors& f, const at::Tensor& b, const c10::SymInt& rows, at::ScalarType type) {
  const at::Tensor blocks = b.unflatten_symint(2, {-1, rows});  // (B,Hk,nb,rows,D)
  const at::Tensor start = blocks.slice(3, 0, 1);
  f.first = exponential(blocks - start, type);
  const at::Tensor j = counted(b.sym_size(2), b), i = counted(blocks.sym_size(2), b).mul(at::Scalar(rows));
  const at::Tensor not_before = j.unsqueeze(0).ge(i.unsqueeze(1)).unsqueeze(2);  // (nb,n,1)
  f.back = exponential((start - b.unsqueeze(2)).masked_fill(not_before, -kInfinity), type);
  const at::Tensor within = blocks.unsqueeze(4) - blocks.unsqueeze(3);  // (B,Hk,nb,rows,rows,D)
  f.diagonal = exponential(within.masked_fill(hidden(rows, b, false).unsqueeze(2), -kInfinity), type);
}

Factors factors_of(const LinearForm& form, const LinearTokens& t, const c10::SymInt& rows) {
  Factors f;
  if (form.decay == Decay::none) return f;
  const at::Tensor b = cut_decay(t.decay).cumsum(2), last = b.slice(2, -1);
  f.in = exponential(b, form.compute);
  f.out = exponential(last - b, form.compute);
  f.all = exponential(last, form.compute);
  if (!t.q.defined() && !t.beta.defined()) return f;  // nothing looks at pairs
  if (form.decay != Decay::scalar) {
    add_blocks(f, b, rows, form.compute);
  } else {
    f.pair =
        exponential((b - b.transpose(2, 3)).masked_fill(hidden(b.sym_size(2), b, false), -kInfinity), form.compute);
  }
  return f;
}

/// Puts `diagonal` (..,nb,rows,rows) over the blocks of `all` (..,nb,rows,nb,rows) that lie on the diagonal.
at::Tensor with_diagonal(const at::Tensor& all, const at::Tensor& diagonal, const at::Tensor& like) {
  const at::Tensor i = counted(all.sym_size(-2), like);
  const at::Tensor same = i.unsqueeze(1).eq(i).unsqueeze(1).unsqueeze(3);  // (nb,1,nb,1)
  return at::where(same, diagonal.unsqueeze(-2), all);
}

/// sum_d q_rd k_jd E_rjd of q (B,Hk,G,n,Dk) and k (B,Hk,n,Dk): (B,Hk,G,n,n), 0 where j > r (strict: j >= r).
at::Tensor scores_of(const LinearForm& form, const at::Tensor& q, const at::Tensor& k, const Factors& f,
                     const c10::SymInt& rows, bool strict) {
  const at::Tensor mask = hidden(k.sym_size(2), k, strict);
  if (form.decay != Decay::key) {
    // Queries of one key head are rows of one product.
    const at::Tensor products =
        at::matmul(q.flatten(2, 3), k.transpose(2, 3))
            .reshape_symint({q.sym_size(0), q.sym_size(1), q.sym_size(2), q.sym_size(3), k.sym_size(2)});
    const at::Tensor decayed = form.decay == Decay::scalar ? products * f.pair.unsqueeze(2) : products;
    return decayed.masked_fill(mask, 0);
  }
  const at::Tensor queries = q.unflatten_symint(3, {-1, rows}), keys = k.unflatten_symint(2, {-1, rows});
  const at::Tensor before = (k.unsqueeze(2) * f.back).transpose(3, 4).unsqueeze(2);  // (B,Hk,1,nb,Dk,n)
  const at::Tensor earlier = at::matmul(queries * f.first.unsqueeze(2), before).unflatten_symint(5, {-1, rows});
  const at::Tensor own = (queries.unsqueeze(5) * (f.diagonal * keys.unsqueeze(3)).unsqueeze(2)).sum(-1);
  return with_diagonal(earlier, own, k).flatten(5, 6).flatten(3, 4).masked_fill(mask, 0);
}

/// sum_j A_rj E_rjd v_jd with a decay of the value channels: (B,Hk,G,n,Dv).
at::Tensor mix_values(const at::Tensor& scores, const at::Tensor& v, const Factors& f, const c10::SymInt& rows) {
  const at::Tensor blocks = scores.unflatten_symint(3, {-1, rows});  // (B,Hk,G,nb,rows,n)
  const at::Tensor earlier = at::matmul(blocks, (v.unsqueeze(2) * f.back).unsqueeze(2)) * f.first.unsqueeze(2);
  const at::Tensor own = blocks.unflatten_symint(5, {-1, rows}).diagonal(0, 3, 5).movedim(-1, 3);  // (..,nb,rows,rows)
  const at::Tensor values = f.diagonal * v.unflatten_symint(2, {-1, rows}).unsqueeze(3);           // (..,rows,rows,Dv)
  return (earlier + (own.unsqueeze(-1) * values.unsqueeze(2)).sum(-2)).flatten(3, 4);
}

/// q (B,Hk,G,n,D) times S (B,Hk,D,V).
at::Tensor read(const at::Tensor& q, const at::Tensor& state) { return at::matmul(q, state.unsqueeze(2)); }

at::Tensor padded(const at::Tensor& t, const c10::SymInt& extra) {
  return t.defined() ? at::constant_pad_nd_symint(t, {0, 0, 0, extra}) : t;
}

at::Tensor cast(const at::Tensor& t, at::ScalarType type) { return t.defined() ? t.to(type) : t; }

}  // namespace

LinearStep linear_chunk(const LinearForm& form, const LinearTokens& given, const at::Tensor& state) {
  LinearTokens t{cast(given.q, form.compute), cast(given.k, form.compute), cast(given.v, form.compute), given.decay,
                 cast(given.beta, form.compute)};
  const c10::SymInt tokens = t.k.sym_size(2);
  const bool blocks = form.decay == Decay::key || form.decay == Decay::value;
  const auto known = tokens.maybe_as_int();
  // A length not known while tracing is one sub-block: tracers would fix how many there are.
  const c10::SymInt rows = known && *known > kRows ? c10::SymInt(kRows) : tokens;
  const c10::SymInt extra = blocks && known && *known > 0 ? (rows - tokens % rows) % rows : c10::SymInt(0);
  if (known && extra != 0) {  // tokens that do not decay and write nothing fill the last sub-block
    t = {padded(t.q, extra), padded(t.k, extra), padded(t.v, extra), padded(t.decay, extra), padded(t.beta, extra)};
  }
  const Factors f = factors_of(form, t, rows);
  const bool by_value = form.decay == Decay::value;
  const auto scaled = [&](const at::Tensor& x, const at::Tensor& factor) {
    return form.decay == Decay::none || by_value ? x : x * factor;
  };

  at::Tensor u = t.v;
  if (t.beta.defined()) {
    const at::Tensor overlap = scores_of(form, t.k.unsqueeze(2), t.k, f, rows, /*strict=*/true).squeeze(2) * t.beta;
    const at::Tensor target = t.beta * (t.v - at::matmul(scaled(t.k, f.in), state));
    u = at::linalg_solve_triangular(overlap, target, /*upper=*/false, /*left=*/true, /*unitriangular=*/true);
  }
  // NaN in a token must not reach the rows before it, as 0 * NaN in the products would.
  at::Tensor seen = u, poisoned;
  if (t.q.defined() && !(concrete(u) && at::isfinite(u.detach()).all().item<bool>())) {
    const at::Tensor finite = at::isfinite(u);
    seen = at::where(finite, u, at::zeros({}, u.options().requires_grad(std::nullopt)));
    poisoned = finite.logical_not().cumsum(2).gt(0).unsqueeze(2);
  }
  LinearStep step;
  const at::Tensor written = at::matmul(scaled(t.k, f.out).transpose(2, 3), by_value ? u * f.out : u);
  step.state = form.decay == Decay::none ? state + written
               : by_value                ? state * f.all + written
                                         : state * f.all.transpose(2, 3) + written;
  if (!t.q.defined()) return step;
  const at::Tensor q = t.q * form.scale;
  const at::Tensor scores = scores_of(form, q, t.k, f, rows, /*strict=*/false);
  if (by_value) {
    step.o = read(q, state) * f.in.unsqueeze(2) + mix_values(scores, seen, f, rows);
  } else {
    step.o = read(form.decay == Decay::none ? q : q * f.in.unsqueeze(2), state) + at::matmul(scores, seen.unsqueeze(2));
  }
  if (poisoned.defined()) step.o = step.o.masked_fill(poisoned, std::numeric_limits<double>::quiet_NaN());
  step.o = step.o.slice_symint(3, 0, tokens);
  if (form.normalize) step.o = step.o.slice(4, 0, -1) / (step.o.slice(4, -1) + form.eps);
  return step;
}

LinearStep linear_loop(const LinearForm& form, const LinearTokens& given, const at::Tensor& initial) {
  const int64_t tokens = given.k.size(2);
  const auto at_token = [](const at::Tensor& t, int64_t dim, int64_t i) { return t.narrow(dim, i, 1); };
  LinearStep step{{}, initial};
  std::vector<at::Tensor> outputs;
  for (int64_t i = 0; i < tokens; ++i) {
    const at::Tensor k = at_token(given.k, 2, i).to(form.compute), v = at_token(given.v, 2, i).to(form.compute);
    at::Tensor& state = step.state;
    if (form.decay != Decay::none) {
      const at::Tensor kept = cut_decay(at_token(given.decay, 2, i)).to(form.compute).exp();
      state = state * (form.decay == Decay::value ? kept : kept.transpose(2, 3));
    }
    at::Tensor u = v;
    if (given.beta.defined()) u = at_token(given.beta, 2, i).to(form.compute) * (v - at::matmul(k, state));
    state = state + k.transpose(2, 3) * u;
    if (given.q.defined()) outputs.push_back(read(at_token(given.q, 3, i).to(form.compute) * form.scale, state));
  }
  if (!given.q.defined()) return step;
  step.o = at::cat(outputs, 3);
  if (form.normalize) step.o = step.o.slice(4, 0, -1) / (step.o.slice(4, -1) + form.eps);
  return step;
}

at::Tensor cut_decay(const at::Tensor& log_decay) {
  // e^-800 is 0 in float64; sums of some thousands of it still resolve 1e-11.
  constexpr double least = -800;
  return log_decay.to(at::kDouble).clamp_min(least);
}

}  // namespace regard::ops

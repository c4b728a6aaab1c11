// Passes over the pairs of a tile beside the products: masking, softmax, chain rule. Part of primitives.inl.

template <class T>
void mask_scores(T* tile, View<T> score, View<int32_t> live, int64_t steps, int64_t lanes, T* maximum) {
  constexpr T nothing = -Format<T>::infinity;
  for (int64_t s = 0; s < steps; ++s) {
    const T* from = score.data + s * score.step;
    T* to = tile + s * kLanes;
    if (live) {
      const int32_t* mask = live.data + s * live.step;
#pragma GCC ivdep
      for (int64_t l = 0; l < lanes; ++l) {
        const T value = mask[l] != 0 ? from[l] : nothing;
        to[l] = value;
        maximum[l] = value > maximum[l] ? value : maximum[l];
      }
    } else {
#pragma GCC ivdep
      for (int64_t l = 0; l < lanes; ++l) {
        const T value = from[l];
        to[l] = value;
        maximum[l] = value > maximum[l] ? value : maximum[l];
      }
    }
  }
}

/// maximum = max(maximum, block maximum), factor = exp(old - new). `base` is what scores are measured from: the
/// maximum, or 0 while it is -inf (no -inf minus -inf).
template <class T>
void raise_maximum(RowState<T>& state, int64_t lanes, T* base) {
  constexpr T nothing = -Format<T>::infinity;
#pragma GCC ivdep
  for (int64_t l = 0; l < lanes; ++l) {
    const T old = state.maximum[l], block = state.block_maximum[l];
    const T now = block > old ? block : old;
    base[l] = now == nothing ? T(0) : now;
    state.maximum[l] = now;
    state.factor[l] = weight_exp(old - base[l]);
  }
}

template <class T>
void absorb(const Absorb<T>& a) {
  alignas(64) T base[kLanes], sum[kLanes];
  RowState<T>& state = *a.state;
  raise_maximum(state, a.lanes, base);
  for (int64_t l = 0; l < a.lanes; ++l) sum[l] = 0;
  for (int64_t s = 0; s < a.steps; ++s) {
    T* tile = a.tile + s * kLanes;
    if (a.counted != nullptr) {
      const int32_t* counted = a.counted + s * kLanes;
#pragma GCC ivdep
      for (int64_t l = 0; l < a.lanes; ++l) {
        const T p = weight_exp(tile[l] - base[l]);
        sum[l] += counted[l] != 0 ? p : T(0);
        tile[l] = p;
      }
    } else {
#pragma GCC ivdep
      for (int64_t l = 0; l < a.lanes; ++l) {
        const T p = weight_exp(tile[l] - base[l]);
        sum[l] += p;
        tile[l] = p;
      }
    }
    if (a.weight != nullptr) {
      const T* weight = a.weight + s * kLanes;
#pragma GCC ivdep
      for (int64_t l = 0; l < a.lanes; ++l) tile[l] *= weight[l];
    }
    if (a.keep != nullptr) {
      const int32_t* keep = a.keep + s * kLanes;
#pragma GCC ivdep
      for (int64_t l = 0; l < a.lanes; ++l) tile[l] = keep[l] != 0 ? tile[l] : T(0);
    }
  }
#pragma GCC ivdep
  for (int64_t l = 0; l < a.lanes; ++l) state.sum[l] = state.sum[l] * state.factor[l] + sum[l];
}

template <class T, bool RowsInLanes, bool Masked>
void chain_step(const Chain<T>& c, int64_t s, const int32_t* keep, const int32_t* counted) {
  const T* score = c.score.data + s * c.score.step;
  const T* dp = c.dp + s * kLanes;
  const T step_lse = RowsInLanes ? T(0) : c.lse[s], step_delta = RowsInLanes ? T(0) : c.delta[s];
  T* ds = c.ds + s * kLanes;
  alignas(64) T kept[kLanes], dw[kLanes], pw[kLanes];
#pragma GCC ivdep
  for (int64_t l = 0; l < c.lanes; ++l) {
    const T p = weight_exp(score[l] - (RowsInLanes ? c.lse[l] : step_lse));
    const T all = p * (RowsInLanes ? c.delta[l] : step_delta);
    kept[l] = !Masked || keep[l] != 0 ? p : T(0);
    dw[l] = !Masked || keep[l] != 0 ? p * dp[l] : T(0);
    ds[l] = !Masked || counted[l] != 0 ? -all : T(0);
  }
  if (c.weight) {
    const T* weight = c.weight.data + s * c.weight.step;
#pragma GCC ivdep
    for (int64_t l = 0; l < c.lanes; ++l) {
      pw[l] = !Masked || keep[l] != 0 ? kept[l] * weight[l] : T(0);
      ds[l] += !Masked || keep[l] != 0 ? dw[l] * weight[l] : T(0);
    }
  } else {
#pragma GCC ivdep
    for (int64_t l = 0; l < c.lanes; ++l) {
      pw[l] = kept[l];
      ds[l] += dw[l];
    }
  }
  if (c.pw != nullptr) {
    for (int64_t l = 0; l < c.lanes; ++l) c.pw[s * kLanes + l] = pw[l];
  }
  if (c.dw != nullptr) {
    for (int64_t l = 0; l < c.lanes; ++l) c.dw[s * kLanes + l] = dw[l];
  }
}

template <class T>
void chain(const Chain<T>& c) {
  for (int64_t s = 0; s < c.steps; ++s) {
    if (!c.keep) {
      if (c.rows_in_lanes) {
        chain_step<T, true, false>(c, s, nullptr, nullptr);
      } else {
        chain_step<T, false, false>(c, s, nullptr, nullptr);
      }
      continue;
    }
    const int32_t* keep = c.keep.data + s * c.keep.step;
    const int32_t* counted = c.counted ? c.counted.data + s * c.counted.step : keep;
    if (c.rows_in_lanes) {
      chain_step<T, true, true>(c, s, keep, counted);
    } else {
      chain_step<T, false, true>(c, s, keep, counted);
    }
  }
}

template <class T>
void combine(const Combine<T>& c) {
  for (int64_t s = 0; s < c.steps; ++s) {
    T* out = c.out + s * kLanes;
    for (int64_t l = 0; l < c.lanes; ++l) out[l] = 0;
    if (c.f) {
      const T *f = c.f.data + s * c.f.step, *ds = c.ds + s * kLanes;
#pragma GCC ivdep
      for (int64_t l = 0; l < c.lanes; ++l) out[l] = ds[l] * f[l];
    }
    if (c.g) {
      const T *g = c.g.data + s * c.g.step, *dw = c.dw + s * kLanes;
#pragma GCC ivdep
      for (int64_t l = 0; l < c.lanes; ++l) out[l] += dw[l] * g[l];
    }
    if (c.live) {
      const int32_t* live = c.live.data + s * c.live.step;
#pragma GCC ivdep
      for (int64_t l = 0; l < c.lanes; ++l) out[l] = live[l] != 0 ? out[l] : T(0);
    }
  }
}

// What attention takes that is loaded by TMA and multiplied by WGMMA.
#pragma once

#include <algorithm>
#include <limits>

#include "attention/attention.h"
#include "core/pack.h"

namespace pyops {

// TMA steps by multiples of 16 bytes, not by 0, less than 2^40; a dimension of one has no step.
inline bool suits_tma(const ConstRows& t, int64_t batch, int64_t heads, int64_t rows) {
  const auto suits = [](int64_t size, int64_t stride) {
    return size == 1 || (stride > 0 && stride % 8 == 0 && stride < int64_t{1} << 39);
  };
  return is_pack_aligned(t.data) && suits(batch, t.b) && suits(heads, t.h) && suits(rows, t.row);
}
inline bool suits_tma(const Rows& t, int64_t batch, int64_t heads, int64_t rows) {
  return suits_tma(ConstRows{t.data, t.b, t.h, t.row}, batch, heads, rows);
}

// Products are compared before they are scaled, by a scale that is therefore positive. A mask's
// numbers are 16 bits wide, as those of the tensors.
inline bool suits_attention_sm90(const AttentionShape& p, const AttentionMask& mask) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - 256;
  const auto suits = [](int64_t n) { return n % 8 == 0 && 0 < n && n <= 128; };
  const bool suits_mask = mask.kind != MaskKind::kFloat || mask.dtype == p.dtype;
  return suits(p.dim) && suits(p.value_dim) && suits_mask && static_cast<float>(p.scale) > 0 &&
         p.scale <= 1e30 && std::max({p.queries, p.keys, p.batch, p.heads}) <= kMost;
}
inline bool suits_attention_sm90(const AttentionParams& p) {
  return suits_attention_sm90(p, p.mask) && suits_tma(p.q, p.batch, p.heads, p.queries) &&
         suits_tma(p.k, p.batch, p.kv_heads, p.keys) &&
         suits_tma(p.v, p.batch, p.kv_heads, p.keys) &&
         suits_tma(p.out, p.batch, p.heads, p.queries);
}
inline bool suits_attention_sm90(const AttentionBackwardParams& p) {
  const auto suits_queries = [&](const auto& t) {
    return t.data == nullptr || suits_tma(t, p.batch, p.heads, p.queries);
  };
  const auto suits_keys = [&](const auto& t) {
    return t.data == nullptr || suits_tma(t, p.batch, p.kv_heads, p.keys);
  };
  return suits_attention_sm90(p, p.mask) && p.grad_mask.data == nullptr && suits_queries(p.q) &&
         suits_queries(p.out) && suits_queries(p.grad_out) && suits_queries(p.grad_q) &&
         suits_keys(p.k) && suits_keys(p.v) && suits_keys(p.grad_k) && suits_keys(p.grad_v);
}
inline constexpr const char* kSuitsAttentionSm90 =
    "D and E in multiples of 8 up to 128, a mask of bool or the query's dtype, a positive scale, "
    "strides in multiples of 16 bytes";
inline constexpr const char* kSuitsAttentionBackwardSm90 =
    "D and E in multiples of 8 up to 128, a mask of bool or the query's dtype without a gradient, "
    "a positive scale, strides in multiples of 16 bytes";

}  // namespace pyops

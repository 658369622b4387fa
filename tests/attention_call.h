// The parameters of attention as the tests pass them from Python.
#pragma once

#include "attention/attention.h"

namespace pyops {

// A tensor: its address, its strides.
inline ConstRows rows(const int64_t* t) {
  return {reinterpret_cast<const void*>(t[0]), t[1], t[2], t[3]};
}
inline Rows mutable_rows(const int64_t* t) {
  return {reinterpret_cast<void*>(t[0]), t[1], t[2], t[3]};
}

inline AttentionMask mask_of(const int64_t* m) {
  return {static_cast<MaskKind>(m[0]),
          static_cast<Dtype>(m[1]),
          reinterpret_cast<const void*>(m[2]),
          m[3],
          m[4],
          m[5],
          m[6]};
}

// sizes: dtype, B, H, G, L, S, D, E, is_causal
inline AttentionShape shape_of(const int64_t* n, double scale, double dropout_p,
                               const int64_t* seed) {
  return {static_cast<Dtype>(n[0]),
          Precision::kHighest,
          n[1],
          n[2],
          n[3],
          n[4],
          n[5],
          n[6],
          n[7],
          scale,
          n[8] != 0,
          dropout_p,
          0,
          seed};
}

inline AttentionParams forward_params(const int64_t* sizes, double scale, double dropout_p,
                                      const int64_t* seed, const int64_t* mask, const int64_t* q,
                                      const int64_t* k, const int64_t* v, const int64_t* out,
                                      void* row_max, void* row_scale) {
  return {{shape_of(sizes, scale, dropout_p, seed)},
          mask_of(mask),
          rows(q),
          rows(k),
          rows(v),
          mutable_rows(out),
          row_max,
          row_scale};
}

inline AttentionBackwardParams backward_params(
    const int64_t* sizes, double scale, double dropout_p, const int64_t* seed, const int64_t* mask,
    const int64_t* q, const int64_t* k, const int64_t* v, const int64_t* out,
    const int64_t* grad_out, const void* row_max, const void* row_scale, const int64_t* grad_q,
    const int64_t* grad_k, const int64_t* grad_v, const int64_t* grad_mask, void* row_sums) {
  return {{shape_of(sizes, scale, dropout_p, seed)},
          mask_of(mask),
          rows(q),
          rows(k),
          rows(v),
          rows(out),
          rows(grad_out),
          row_max,
          row_scale,
          mutable_rows(grad_q),
          mutable_rows(grad_k),
          mutable_rows(grad_v),
          {reinterpret_cast<void*>(grad_mask[0]), grad_mask[1], grad_mask[2], grad_mask[3],
           grad_mask[4]},
          row_sums};
}

}  // namespace pyops

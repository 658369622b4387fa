// What attention on tensor cores takes.
#pragma once

#include "attention/attention.h"

namespace pyops {

inline constexpr const char* kSuitsAttentionTensorop = "D and E of 32 to 128";

inline bool has_columns_for_tensorop(const AttentionShape& p) {
  const auto suits = [](int64_t n) { return n >= 32 && n <= 128; };
  return suits(p.dim) && suits(p.value_dim);
}
inline bool suits_attention_tensorop(const AttentionParams& p) {
  return has_columns_for_tensorop(p);
}

inline constexpr const char* kSuitsAttentionBackwardTensorop =
    "D and E of 32 to 128, less than 2^31 tiles of 32 rows, or of 32 by 64 elements of a mask that "
    "has a gradient";

// Rows and tiles are counted by int, and a grid has no more blocks.
inline bool has_tiles_for_tensorop(const AttentionShape& p, bool has_mask_gradient) {
  const auto tiles = [](int64_t n, int64_t of) { return static_cast<double>((n + of - 1) / of); };
  const double heads = static_cast<double>(p.batch) * static_cast<double>(p.heads);
  const double rows = tiles(p.queries > p.keys ? p.queries : p.keys, 32);
  const double of_mask = tiles(p.queries, 32) * tiles(p.keys, 64);
  const double blocks = heads * (!has_mask_gradient || of_mask < rows ? rows : of_mask);
  constexpr int64_t kMost = INT32_MAX - 256;
  return blocks <= kMost && p.queries <= kMost && p.keys <= kMost;
}
inline bool suits_attention_tensorop(const AttentionBackwardParams& p) {
  return has_columns_for_tensorop(p) && has_tiles_for_tensorop(p, p.grad_mask.data != nullptr);
}

// In float32 scores that are rounded otherwise than those whose sums the forward saved would show
// in the gradients of sharp ones: both directions have the same rule, of what both can see.
inline constexpr const char* kSuitsAttention3xTf32 =
    "D and E of 32 to 64 (of more, registers do not hold the gradients of keys), less than 2^31 "
    "tiles of 32 rows, or of 32 by 64 elements of a float mask";

template <class Params>
bool suits_attention_float32(const Params& p) {
  return has_columns_for_tensorop(p) && has_tiles_for_tensorop(p, p.mask.kind == MaskKind::kFloat);
}
template <class Params>
bool suits_attention_3xtf32(const Params& p) {
  return p.dim <= 64 && p.value_dim <= 64 && suits_attention_float32(p);
}

inline constexpr const char* kSuitsAttentionTf32 =
    "TF32 allowed, D and E of 32 to 128, less than 2^31 tiles of 32 rows, or of 32 by 64 elements "
    "of "
    "a float mask";

template <class Params>
bool suits_attention_tf32(const Params& p) {
  return p.precision != Precision::kHighest && suits_attention_float32(p);
}

}  // namespace pyops

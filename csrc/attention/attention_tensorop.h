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
inline bool suits_attention_tensorop(const AttentionBackwardParams& p) {
  const auto tiles = [](int64_t n, int64_t of) { return static_cast<double>((n + of - 1) / of); };
  const double heads = static_cast<double>(p.batch) * static_cast<double>(p.heads);
  const double rows = tiles(p.queries > p.keys ? p.queries : p.keys, 32);
  const double of_mask = tiles(p.queries, 32) * tiles(p.keys, 64);
  const double blocks = heads * (p.grad_mask.data == nullptr || of_mask < rows ? rows : of_mask);
  constexpr int64_t kMost = INT32_MAX - 256;
  return has_columns_for_tensorop(p) && blocks <= kMost && p.queries <= kMost && p.keys <= kMost;
}

inline constexpr const char* kSuitsAttentionTf32 = "TF32 allowed, D and E of 32 to 128";

inline bool suits_attention_tf32(const AttentionParams& p) {
  return p.precision != Precision::kHighest && suits_attention_tensorop(p);
}

}  // namespace pyops

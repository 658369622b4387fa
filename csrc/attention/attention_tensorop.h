// What attention on tensor cores takes.
#pragma once

#include "attention/attention.h"

namespace pyops {

inline constexpr const char* kSuitsAttentionTensorop = "D and E of 32 to 128";

inline bool suits_attention_tensorop(const AttentionParams& p) {
  const auto suits = [](int64_t n) { return n >= 32 && n <= 128; };
  return suits(p.dim) && suits(p.value_dim);
}

inline constexpr const char* kSuitsAttentionTf32 = "TF32 allowed, D and E of 32 to 128";

inline bool suits_attention_tf32(const AttentionParams& p) {
  return p.precision != Precision::kHighest && suits_attention_tensorop(p);
}

}  // namespace pyops

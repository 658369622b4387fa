#pragma once

#include "core/simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Twelve chains cover two ports times the latency of four cycles with room to spare.
inline double multiply_add_float32(int64_t iterations) {
  using V = Vec<float>;
  constexpr int kChains = 12;
  const V factor = V::set1(0.999f), addend = V::set1(1e-3f);
  V sums[kChains];
#pragma GCC unroll 12
  for (int c = 0; c < kChains; ++c) sums[c] = V::set1(static_cast<float>(c));
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) sums[c] = V::fma(sums[c], factor, addend);
  }
  V total = V::zero();
#pragma GCC unroll 12
  for (int c = 0; c < kChains; ++c) total = total + sums[c];
  volatile float keep = total.sum();
  static_cast<void>(keep);
  return 2.0 * kChains * V::kWidth * static_cast<double>(iterations);
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE

#include <immintrin.h>

#include "core/multiply_add.h"

namespace pyops {

// Sixteen chains cover two ports times a latency of six cycles.
double multiply_add_bfloat16_avx512_bf16(int64_t iterations) {
  constexpr int kChains = 16;
  const auto pairs = (__m512bh)_mm512_set1_epi32(0x3f803f80);  // of ones
  __m512 sums[kChains];
#pragma GCC unroll 16
  for (int c = 0; c < kChains; ++c) sums[c] = _mm512_set1_ps(static_cast<float>(c));
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) sums[c] = _mm512_dpbf16_ps(sums[c], pairs, pairs);
  }
  __m512 total = _mm512_setzero_ps();
#pragma GCC unroll 16
  for (int c = 0; c < kChains; ++c) total = _mm512_add_ps(total, sums[c]);
  volatile float keep = _mm512_reduce_add_ps(total);
  static_cast<void>(keep);
  return 2.0 * kChains * 32 * static_cast<double>(iterations);
}

}  // namespace pyops

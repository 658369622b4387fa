// Vectors (vec.h) and the functions of them that every instruction set shares.
#pragma once

#if defined(__AVX512F__)
#include "core/vec_avx512.h"
#else
#include "core/vec_avx2.h"
#endif

namespace pyops::PYOPS_ISA_NAMESPACE {

// What an operator's table offers the kernels of this instruction set.
#if defined(__AMX_TILE__)
inline constexpr DtypeSet kKernelTypes = kTileTypes;
#else
inline constexpr DtypeSet kKernelTypes = kAnyFloat;
#endif

// Ask for the line of memory of p, to read or to write it. As assembly: the compiler drops a call
// that has no effect but a prefetch. Processors without prefetchw take it for no operation.
inline void prefetch_to_read(const void* p) {
  asm volatile("prefetcht0 %0" : : "m"(*static_cast<const char*>(p)));
}
inline void prefetch_to_write(const void* p) {
  asm volatile("prefetchw %0" : : "m"(*static_cast<const char*>(p)));
}

// e^x to 1 ulp (Cody-Waite reduction, minimax polynomial of degree 6); inf beyond the range, NaN
// stays NaN. Below e^-87.3 the result is 0: a subnormal costs an assist of a hundred cycles, which
// every masked score of a softmax would pay.
inline Vec<float> exp(Vec<float> x) {
  using V = Vec<float>;
  const V lowest = V::set1(-87.3f);
  // max and min return their second operand for NaN, so a NaN passes through.
  const V clamped = V::min(V::set1(89.0f), V::max(lowest, x));
  const V n = V::round(clamped * V::set1(1.44269504088896341f));
  V r = V::fma(n, V::set1(-0.693145751953125f), clamped);
  r = V::fma(n, V::set1(-1.42860677e-6f), r);
  V p = V::set1(1.3814596e-3f);
  p = V::fma(p, r, V::set1(8.3687175e-3f));
  p = V::fma(p, r, V::set1(4.1668390e-2f));
  p = V::fma(p, r, V::set1(1.6666521e-1f));
  p = V::fma(p, r, V::set1(0.49999994f));
  p = V::fma(p * r, r, r) + V::set1(1.0f);
  return V::zero_below(x, lowest, V::ldexp(p, n));
}

inline Vec<float> sigmoid(Vec<float> x) {
  using V = Vec<float>;
  return V::set1(1.0f) / (V::set1(1.0f) + exp(V::zero() - x));
}

// tanh within 2 ulp, of |x|: 1 - 2/(e^2x + 1) loses digits as x nears 0, so below 0.625 an odd
// polynomial takes over (Cephes, tanhf).
inline Vec<float> tanh(Vec<float> x) {
  using V = Vec<float>;
  const V one = V::set1(1.0f), magnitude = V::abs(x), x2 = x * x;
  const V large = one - V::set1(2.0f) / (exp(magnitude + magnitude) + one);
  V p = V::set1(-5.70498872745e-3f);
  p = V::fma(p, x2, V::set1(2.06390887954e-2f));
  p = V::fma(p, x2, V::set1(-5.37397155531e-2f));
  p = V::fma(p, x2, V::set1(1.33314422036e-1f));
  p = V::fma(p, x2, V::set1(-3.33332819422e-1f));
  const V small = V::fma(p * x2, magnitude, magnitude);
#if defined(__AVX512F__)
  const __mmask16 is_small = _mm512_cmp_ps_mask(x2.v, _mm512_set1_ps(0.390625f), _CMP_LT_OQ);
  return V::copysign({_mm512_mask_mov_ps(large.v, is_small, small.v)}, x);
#else
  const __m256 is_small = _mm256_cmp_ps(x2.v, _mm256_set1_ps(0.390625f), _CMP_LT_OQ);
  return V::copysign({_mm256_blendv_ps(large.v, small.v, is_small)}, x);
#endif
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE

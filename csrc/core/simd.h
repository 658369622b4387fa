// Vectors (vec.h) and the functions of them that every instruction set shares.
#pragma once

#include <cstddef>
#include <iterator>
#include <type_traits>
#include <utility>

#if defined(__AVX512F__)
#include "core/vec_avx512.h"
#else
#include "core/vec_avx2.h"
#endif

namespace pyops::PYOPS_ISA_NAMESPACE {

// What an operator's table offers the kernels of this instruction set.
#if defined(__AMX_TILE__)
inline constexpr DtypeSet kKernelTypes = kTileTypes;
#elif defined(__AVX512BF16__)
inline constexpr DtypeSet kKernelTypes = kBFloat16;
#else
inline constexpr DtypeSet kKernelTypes = kAnyFloat;
#endif

// Ask for the line of memory of p, to read or to write it. As assembly: the compiler drops a call
// that has no effect but a prefetch. Processors without prefetchw take it for no operation.
inline void prefetch_to_read(const void* p) {
  asm volatile("prefetcht0 %0" : : "m"(*static_cast<const char*>(p)));
}
inline void prefetch_to_l2(const void* p) {
  asm volatile("prefetcht1 %0" : : "m"(*static_cast<const char*>(p)));
}
inline void prefetch_to_write(const void* p) {
  asm volatile("prefetchw %0" : : "m"(*static_cast<const char*>(p)));
}

// The first n numbers, without a mask where those fill a register.
template <class T>
auto load(const T* p, int n) {
  using V = Vec<acc_t<T>>;
  return n == V::kWidth ? V::load(p) : V::load(p, n);
}
template <class V, class T>
void store(V x, T* p, int n) {
  n == V::kWidth ? x.store(p) : x.store(p, n);
}

// f(j, n) for each vector of `count` numbers; n is a constant but for the last, partial one.
template <class Acc, class F>
void for_vectors(int64_t count, const F& f) {
  constexpr int kWidth = Vec<Acc>::kWidth;
  int64_t j = 0;
  for (; j + kWidth <= count; j += kWidth) f(j, std::integral_constant<int, kWidth>{});
  if (j < count) f(j, static_cast<int>(count - j));
}

// What exp computes with: where e^x is normal and finite, ln 2 in two parts, of which the first
// times any exponent is exact, and (e^r - 1 - r) / r² for |r| <= ln 2 / 2, highest power first.
template <class A>
struct Exponential;
template <>
struct Exponential<float> {  // minimax
  static constexpr float kLowest = -87.3f, kHighest = 89.0f;
  static constexpr float kLn2High = 0.693145751953125f, kLn2Low = 1.42860677e-6f;
  static constexpr float kPolynomial[] = {1.3814596e-3f, 8.3687175e-3f, 4.1668390e-2f,
                                          1.6666521e-1f, 0.49999994f};
};
template <>
struct Exponential<double> {  // Taylor's: what it leaves out is below 2^-56
  static constexpr double kLowest = -708.3, kHighest = 710.0;
  static constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr double kPolynomial[] = {
      1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
      1.0 / 5040,       1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      0.5};
};

// e^x to 1 ulp (Cody-Waite reduction); inf beyond the range, NaN stays NaN. Where e^x is subnormal
// the result is 0: a subnormal costs an assist of a hundred cycles, which every masked score of a
// softmax would pay.
template <class A>
Vec<A> exp(Vec<A> x) {
  using V = Vec<A>;
  using E = Exponential<A>;
  const V lowest = V::set1(E::kLowest);
  // max and min return their second operand for NaN, so a NaN passes through.
  const V clamped = V::min(V::set1(E::kHighest), V::max(lowest, x));
  const V n = V::round(clamped * V::set1(static_cast<A>(1.44269504088896341)));
  V r = V::fma(n, V::set1(-E::kLn2High), clamped);
  r = V::fma(n, V::set1(-E::kLn2Low), r);
  V p = V::set1(E::kPolynomial[0]);
  [&]<size_t... i>(std::index_sequence<i...>) {
    ((p = V::fma(p, r, V::set1(E::kPolynomial[i + 1]))), ...);
  }(std::make_index_sequence<std::size(E::kPolynomial) - 1>{});
  p = V::fma(p * r, r, r) + V::set1(A{1});
  return V::zero_below(x, lowest, V::ldexp(p, n));
}

template <class A>
Vec<A> sigmoid(Vec<A> x) {
  const Vec<A> one = Vec<A>::set1(1);
  return one / (one + exp(Vec<A>::zero() - x));
}

// tanh x for 0 <= x < 0.625 (Cephes, tanhf and tanh).
inline Vec<float> tanh_near_zero(Vec<float> x) {
  using V = Vec<float>;
  const V x2 = x * x;
  V p = V::set1(-5.70498872745e-3f);
  p = V::fma(p, x2, V::set1(2.06390887954e-2f));
  p = V::fma(p, x2, V::set1(-5.37397155531e-2f));
  p = V::fma(p, x2, V::set1(1.33314422036e-1f));
  p = V::fma(p, x2, V::set1(-3.33332819422e-1f));
  return V::fma(p * x2, x, x);
}
inline Vec<double> tanh_near_zero(Vec<double> x) {
  using V = Vec<double>;
  const V x2 = x * x;
  V p = V::set1(-9.64399179425052238628e-1);
  p = V::fma(p, x2, V::set1(-9.92877231001918586564e1));
  p = V::fma(p, x2, V::set1(-1.61468768441708447952e3));
  V q = x2 + V::set1(1.12811678491632931402e2);
  q = V::fma(q, x2, V::set1(2.23548839060100448583e3));
  q = V::fma(q, x2, V::set1(4.84406305325125486048e3));
  return V::fma(p / q * x2, x, x);
}

// tanh within 2 ulp, of |x|: 1 - 2/(e^2x + 1) loses digits as x nears 0.
template <class A>
Vec<A> tanh(Vec<A> x) {
  using V = Vec<A>;
  const V one = V::set1(1), magnitude = V::abs(x);
  const V large = one - V::set1(2) / (exp(magnitude + magnitude) + one);
  const V small = tanh_near_zero(magnitude);
  return V::copysign({magnitude.v < V::set1(static_cast<A>(0.625)).v ? small.v : large.v}, x);
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE

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

// What exponentials compute with: where e^x is normal and finite, ln 2 in two parts, of which the
// first times any exponent is exact, and (e^r - 1 - r) / r² for |r| <= ln 2 / 2, highest power
// first.
template <class A>
struct Exponential;
template <>
struct Exponential<float> {  // minimax
  static constexpr float kLowest = -87.3f, kHighest = 88.0f;
  static constexpr float kLn2High = 0.693145751953125f, kLn2Low = 1.42860677e-6f;
  static constexpr float kPolynomial[] = {1.3814596e-3f, 8.3687175e-3f, 4.1668390e-2f,
                                          1.6666521e-1f, 0.49999994f};
};
template <>
struct Exponential<double> {  // Taylor's: what it leaves out is below 2^-56
  static constexpr double kLowest = -708.3, kHighest = 709.0;
  static constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr double kPolynomial[] = {
      1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
      1.0 / 5040,       1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      0.5};
};

// e^x = 2^n·(1 + p) with |p| < 1/2 (Cody-Waite reduction), of x taken into a range.
template <class A>
struct PowerOfTwo {
  using V = Vec<A>;
  using E = Exponential<A>;
  V n, p;

  PowerOfTwo(V x, A least, A most) {
    // max and min return their second operand for NaN, so a NaN passes through.
    x = V::min(V::set1(most), V::max(V::set1(least), x));
    n = V::round(x * V::set1(static_cast<A>(1.44269504088896341)));
    V r = V::fma(n, V::set1(-E::kLn2High), x);
    r = V::fma(n, V::set1(-E::kLn2Low), r);
    V q = V::set1(E::kPolynomial[0]);
    [&]<size_t... i>(std::index_sequence<i...>) {
      ((q = V::fma(q, r, V::set1(E::kPolynomial[i + 1]))), ...);
    }(std::make_index_sequence<std::size(E::kPolynomial) - 1>{});
    p = V::fma(q * r, r, r);
  }

  // e^x + c, where 2^n is a normal number; exact as c = -1 nears -e^x.
  V plus(A c) const {
    const V power = V::power_of_two(n);
    return V::fma(p, power, power + V::set1(c));
  }
};

// e^x to 1 ulp; inf beyond the range, NaN stays NaN. Where e^x is subnormal the result is 0: a
// subnormal costs an assist of a hundred cycles, which every masked score of a softmax would pay.
template <class A>
Vec<A> exp(Vec<A> x) {
  using V = Vec<A>;
  using E = Exponential<A>;
  const PowerOfTwo<A> e(x, E::kLowest, E::kHighest + 1);  // of which it is inf
  return V::zero_below(x, V::set1(E::kLowest), V::ldexp(e.p + V::set1(1), e.n));
}

// Within 3 ulp, 0 where that would be subnormal.
template <class A>
Vec<A> sigmoid(Vec<A> x) {
  using V = Vec<A>;
  using E = Exponential<A>;
  const PowerOfTwo<A> e(V::zero() - x, E::kLowest, E::kHighest);
  return V::zero_below(x, V::set1(-E::kHighest), V::set1(1) / e.plus(1));
}

// Within 3 ulp, by e^2|x| - 1, which keeps all digits of a small x; of negative x, whose e^2x ends
// where 1 begins, the error would be twice as large. Beyond 20 nothing is left of 1 - tanh x.
template <class A>
Vec<A> tanh(Vec<A> x) {
  using V = Vec<A>;
  const V magnitude = V::abs(x);
  const V m = PowerOfTwo<A>(magnitude + magnitude, 0, 40).plus(-1);
  return V::copysign(m / (m + V::set1(2)), x);
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE

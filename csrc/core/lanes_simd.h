// Lane-wise work on Vec<A>: choosing, integer lanes in memory, (de)interleaving. Comparing two
// registers gives integer lanes as wide as the values and `mask ? a : b` picks by them; those are
// the compiler's own vector operators, so that one text serves every instruction set.
#pragma once

#include <cstring>
#include <type_traits>
#include <utility>

#include "core/simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

template <class A>
using Lanes = decltype(Vec<A>::zero().v > Vec<A>::zero().v);

// The element of Lanes<A>.
template <class A>
using lane_t = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;

template <class A>
Lanes<A> load_lanes(const lane_t<A>* p) {
  Lanes<A> x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

// Whether a lane is NaN.
inline bool any_nan(Vec<float> x) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q) != 0;
#else
  return _mm256_movemask_ps(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q)) != 0;
#endif
}
inline bool any_nan(Vec<double> x) {
#if defined(__AVX512F__)
  return _mm512_cmp_pd_mask(x.v, x.v, _CMP_UNORD_Q) != 0;
#else
  return _mm256_movemask_pd(_mm256_cmp_pd(x.v, x.v, _CMP_UNORD_Q)) != 0;
#endif
}

// 0, 1, 2, …
template <class A>
Lanes<A> lane_numbers() {
  return []<int... i>(std::integer_sequence<int, i...>) {
    return Lanes<A>{i...};
  }(std::make_integer_sequence<int, Vec<A>::kWidth>{});
}

#if defined(__AVX512F__)

// Lanes kept in memory as bytes: the first n, the others are zero or not stored.
template <class A>
Lanes<A> load_lanes(const uint8_t* p, int n) {
  const auto first = static_cast<__mmask16>(Vec<A>::first(n));
  if constexpr (sizeof(A) == 4) {
    return (Lanes<A>)_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first, p));
  } else {
    return (Lanes<A>)_mm512_cvtepu8_epi64(_mm_maskz_loadu_epi8(first, p));
  }
}
template <class A>
void store_lanes(Lanes<A> x, uint8_t* p, int n) {
  if constexpr (sizeof(A) == 4) {
    _mm512_mask_cvtepi32_storeu_epi8(p, Vec<A>::first(n), (__m512i)x);
  } else {
    _mm512_mask_cvtepi64_storeu_epi8(p, Vec<A>::first(n), (__m512i)x);
  }
}

#else  // AVX2

template <class A>
Lanes<A> load_lanes(const uint8_t* p, int n) {
  constexpr int kV = Vec<A>::kWidth;
  uint64_t bytes = 0;
  if (n == kV) {
    std::memcpy(&bytes, p, kV);
  } else {
    for (int i = 0; i < n; ++i) bytes |= uint64_t{p[i]} << 8 * i;
  }
  const __m128i packed = _mm_cvtsi64_si128(static_cast<long long>(bytes));
  if constexpr (sizeof(A) == 4) {
    return (Lanes<A>)_mm256_cvtepu8_epi32(packed);
  } else {
    return (Lanes<A>)_mm256_cvtepu8_epi64(packed);
  }
}
template <class A>
void store_lanes(Lanes<A> x, uint8_t* p, int n) {
  if constexpr (sizeof(A) == 4) {
    const __m128i low = _mm256_castsi256_si128((__m256i)x);
    const __m128i words = _mm_packus_epi32(low, _mm256_extracti128_si256((__m256i)x, 1));
    const auto bytes = static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_packus_epi16(words, words)));
    if (n == 8) return void(std::memcpy(p, &bytes, 8));
    for (int i = 0; i < n; ++i) p[i] = static_cast<uint8_t>(bytes >> 8 * i);
  } else {
    for (int i = 0; i < n; ++i) p[i] = static_cast<uint8_t>(x[i]);
  }
}

#endif

// The same for lanes kept in memory as 64-bit integers.
template <class A>
struct WideLanes {
  // An alias takes no attribute that depends on a parameter. NOLINTNEXTLINE(modernize-use-using)
  typedef int64_t type __attribute__((vector_size(8 * Vec<A>::kWidth)));
};

template <class A>
Lanes<A> load_lanes(const int64_t* p, int n) {
  typename WideLanes<A>::type wide{};
  if (n == Vec<A>::kWidth) {
    std::memcpy(&wide, p, sizeof wide);
  } else {
    for (int i = 0; i < n; ++i) wide[i] = p[i];
  }
  return __builtin_convertvector(wide, Lanes<A>);
}
template <class A>
void store_lanes(Lanes<A> x, int64_t* p, int n) {
  const auto wide = __builtin_convertvector(x, typename WideLanes<A>::type);
  if (n == Vec<A>::kWidth) return void(std::memcpy(p, &wide, sizeof wide));
  for (int i = 0; i < n; ++i) p[i] = wide[i];
}

template <class A>
struct VecPair {
  Vec<A> first, second;
};

// Those lanes of a followed by b. GCC 11 has but a builtin of its own for it.
template <int... kLane, class A>
Vec<A> pick(Vec<A> a, Vec<A> b) {
#if __has_builtin(__builtin_shufflevector)
  return {__builtin_shufflevector(a.v, b.v, kLane...)};
#else
  return {__builtin_shuffle(a.v, b.v, Lanes<A>{kLane...})};
#endif
}

// The lanes of a followed by b, from lane k on.
template <int k, class A>
Vec<A> shifted(Vec<A> a, Vec<A> b) {
  return [&]<int... i>(std::integer_sequence<int, i...>) {
    return pick<(k + i)...>(a, b);
  }(std::make_integer_sequence<int, Vec<A>::kWidth>{});
}

// The upper half of the lanes, also as the lower half.
template <class A>
Vec<A> upper_half(Vec<A> x) {
  constexpr int kHalf = Vec<A>::kWidth / 2;
  return [&]<int... i>(std::integer_sequence<int, i...>) {
    return pick<(kHalf + i % kHalf)...>(x, x);
  }(std::make_integer_sequence<int, 2 * kHalf>{});
}

// The elements 0, 2, 4, … and 1, 3, 5, … of a followed by b, which were loaded from a T's memory.
// Both come in the one order of the lanes that costs least; `in_order` restores it, and is its own
// inverse.
template <class T, class A>
VecPair<A> split(Vec<A> a, Vec<A> b) {
#if !defined(__AVX512F__)
  if constexpr (std::is_same_v<A, float> && !std::is_same_v<T, BFloat16>) {
    return {{_mm256_shuffle_ps(a.v, b.v, 0x88)}, {_mm256_shuffle_ps(a.v, b.v, 0xdd)}};
  } else if constexpr (std::is_same_v<A, double>) {
    return {{_mm256_unpacklo_pd(a.v, b.v)}, {_mm256_unpackhi_pd(a.v, b.v)}};
  }
#endif
  return [&]<int... i>(std::integer_sequence<int, i...>) {
    return VecPair<A>{pick<(2 * i)...>(a, b), pick<(2 * i + 1)...>(a, b)};
  }(std::make_integer_sequence<int, Vec<A>::kWidth>{});
}

template <class T, class L>
L in_order(L x) {
#if !defined(__AVX512F__)
  if constexpr (!std::is_same_v<T, BFloat16>) return (L)_mm256_permute4x64_pd((__m256d)x, 0xd8);
#endif
  return x;
}

// p[0], p[2], … and p[1], p[3], …
template <class T>
auto load_split(const T* p) {
  using V = Vec<acc_t<T>>;
  return split<T>(V::load(p), V::load(p + V::kWidth));
}
// Two bfloat16 make one lane: the odd one is its upper half as it is, the even one a shift away.
inline VecPair<float> split_words(Lanes<float> pairs) {
#if !defined(PYOPS_EMULATED)
  asm("" : "+v"(pairs));  // or both operations would load them
#endif
  const Lanes<float> even = pairs << 16, odd = pairs & static_cast<int>(0xffff0000);
  return {{(decltype(Vec<float>::v))even}, {(decltype(Vec<float>::v))odd}};
}
inline VecPair<float> load_split(const BFloat16* p) {
  Lanes<float> pairs;
  std::memcpy(&pairs, p, sizeof pairs);
  return split_words(pairs);
}

// a0, b0, a1, b1, …
template <class A>
VecPair<A> interleave(Vec<A> a, Vec<A> b) {
#if !defined(__AVX512F__)
  if constexpr (std::is_same_v<A, float>) {
    const __m256 low = _mm256_unpacklo_ps(a.v, b.v), high = _mm256_unpackhi_ps(a.v, b.v);
    return {{_mm256_permute2f128_ps(low, high, 0x20)}, {_mm256_permute2f128_ps(low, high, 0x31)}};
  }
#endif
  constexpr int kV = Vec<A>::kWidth;
  return [&]<int... i>(std::integer_sequence<int, i...>) {
    return VecPair<A>{pick<(i / 2 + i % 2 * kV)...>(a, b),
                      pick<(kV / 2 + i / 2 + i % 2 * kV)...>(a, b)};
  }(std::make_integer_sequence<int, kV>{});
}

#if defined(__AVX512BF16__)
// As split_words() takes them.
inline __m512i join_words(const VecPair<float>& x) {
  return interleave_halves((__m512i)_mm512_cvtne2ps_pbh(x.second.v, x.first.v));
}
#endif
// As load_split() has it from p.
inline void store_split(const VecPair<float>& x, BFloat16* p) {
#if defined(__AVX512BF16__)
  _mm512_storeu_si512(p, join_words(x));
#else
  const auto in_order = interleave(x.first, x.second);
  in_order.first.store(p);
  in_order.second.store(p + Vec<float>::kWidth);
#endif
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE

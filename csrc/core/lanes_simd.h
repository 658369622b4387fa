// Integer lanes as wide as the values of a Vec<T>. Comparing two registers gives them, `mask ? a :
// b` picks by them: the compiler's own vector operators, so that one text serves every instruction
// set.
#pragma once

#include <cstring>
#include <utility>

#include "core/simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

template <class A>
using Lanes = decltype(Vec<A>::zero().v > Vec<A>::zero().v);

// The element of Lanes<A>.
template <class A>
struct LaneElement {
  using type = int32_t;
};
template <>
struct LaneElement<double> {
  using type = int64_t;
};
template <class A>
using lane_t = typename LaneElement<A>::type;

template <class A>
Lanes<A> load_lanes(const lane_t<A>* p) {
  Lanes<A> x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
template <class A>
void store_lanes(Lanes<A> x, lane_t<A>* p) {
  std::memcpy(p, &x, sizeof x);
}

// 0, 1, 2, …
template <class A>
Lanes<A> lane_numbers() {
  return []<int... i>(std::integer_sequence<int, i...>) {
    return Lanes<A>{i...};
  }(std::make_integer_sequence<int, Vec<A>::kWidth>{});
}

// Lanes kept in memory as bytes: `n` of them, the others load as zero and are not stored.
template <class A>
struct ByteLanes;

#if defined(__AVX512F__)
template <>
struct ByteLanes<float> {
  static Lanes<float> load(const uint8_t* p, int n) {
    return (Lanes<float>)_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(Vec<float>::first(n), p));
  }
  static void store(Lanes<float> x, uint8_t* p, int n) {
    _mm512_mask_cvtepi32_storeu_epi8(p, Vec<float>::first(n), (__m512i)x);
  }
};
template <>
struct ByteLanes<double> {
  static Lanes<double> load(const uint8_t* p, int n) {
    return (Lanes<double>)_mm512_cvtepu8_epi64(_mm_maskz_loadu_epi8(Vec<double>::first(n), p));
  }
  static void store(Lanes<double> x, uint8_t* p, int n) {
    _mm512_mask_cvtepi64_storeu_epi8(p, Vec<double>::first(n), (__m512i)x);
  }
};
#else
template <>
struct ByteLanes<float> {
  static Lanes<float> load(const uint8_t* p, int n) {
    uint64_t bytes = 0;
    n == 8 ? std::memcpy(&bytes, p, 8) : std::memcpy(&bytes, p, static_cast<unsigned>(n));
    return (Lanes<float>)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(bytes)));
  }
  static void store(Lanes<float> x, uint8_t* p, int n) {
    const auto whole = (__m256i)x;
    const __m128i words =
        _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    const auto bytes = _mm_cvtsi128_si64(_mm_packus_epi16(words, words));
    n == 8 ? std::memcpy(p, &bytes, 8) : std::memcpy(p, &bytes, static_cast<unsigned>(n));
  }
};
template <>
struct ByteLanes<double> {
  static Lanes<double> load(const uint8_t* p, int n) {
    uint32_t bytes = 0;
    std::memcpy(&bytes, p, static_cast<unsigned>(n));
    return (Lanes<double>)_mm256_cvtepu8_epi64(_mm_cvtsi32_si128(static_cast<int>(bytes)));
  }
  static void store(Lanes<double> x, uint8_t* p, int n) {
    for (int i = 0; i < n; ++i) p[i] = static_cast<uint8_t>(x[i]);
  }
};
#endif

// The same for lanes kept as 64-bit integers.
template <class A>
struct WideLanes {
  static constexpr int kWidth = Vec<A>::kWidth;
  typedef int64_t Wide __attribute__((vector_size(8 * kWidth)));

  static Lanes<A> load(const int64_t* p, int n) {
    Wide wide{};
    n == kWidth ? std::memcpy(&wide, p, sizeof wide) : std::memcpy(&wide, p, 8 * unsigned(n));
    return __builtin_convertvector(wide, Lanes<A>);
  }
  static void store(Lanes<A> x, int64_t* p, int n) {
    const Wide wide = __builtin_convertvector(x, Wide);
    n == kWidth ? std::memcpy(p, &wide, sizeof wide) : std::memcpy(p, &wide, 8 * unsigned(n));
  }
};

template <class A>
Lanes<A> load_lanes(const uint8_t* p, int n) {
  return ByteLanes<A>::load(p, n);
}
template <class A>
Lanes<A> load_lanes(const int64_t* p, int n) {
  return WideLanes<A>::load(p, n);
}
template <class A>
void store_lanes(Lanes<A> x, uint8_t* p, int n) {
  ByteLanes<A>::store(x, p, n);
}
template <class A>
void store_lanes(Lanes<A> x, int64_t* p, int n) {
  WideLanes<A>::store(x, p, n);
}

template <class A>
struct VecPair {
  Vec<A> first, second;
};

// The elements 0, 2, 4, … and 1, 3, 5, … of a followed by b.
template <class A>
VecPair<A> deinterleave(Vec<A> a, Vec<A> b) {
  return [&]<int... i>(std::integer_sequence<int, i...>) {
    return VecPair<A>{{__builtin_shufflevector(a.v, b.v, (2 * i)...)},
                      {__builtin_shufflevector(a.v, b.v, (2 * i + 1)...)}};
  }(std::make_integer_sequence<int, Vec<A>::kWidth>{});
}

// a0, b0, a1, b1, …: the inverse.
template <class A>
VecPair<A> interleave(Vec<A> a, Vec<A> b) {
  constexpr int kW = Vec<A>::kWidth;
  return [&]<int... i>(std::integer_sequence<int, i...>) {
    return VecPair<A>{{__builtin_shufflevector(a.v, b.v, (i / 2 + i % 2 * kW)...)},
                      {__builtin_shufflevector(a.v, b.v, (kW / 2 + i / 2 + i % 2 * kW)...)}};
  }(std::make_integer_sequence<int, kW>{});
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE

// The AVX-512 intrinsics of the kernels on processors that have AVX2 alone; forced before a kernel
// file compiled with AVX2's flags. Lookup in namespace pyops finds these before the compiler's.
// Semantics are those of Intel's manual (SDM), volume 2: a masked access touches enabled lanes
// alone, so that a sanitizer sees what a processor would, and an aligned one of a wrong address
// ends the program.
#pragma once

#include "accesses.h"
#include "halves.h"

#if !defined(__AVX2__) || defined(__AVX512F__)
#error "emulation is for kernels compiled with -mavx2 -mfma -mf16c"
#endif
#define PYOPS_EMULATED
#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512CD__ 1
#define __AVX512DQ__ 1
#define __AVX512VL__ 1

// Macros of the compiler's headers where it does not optimise.
#undef _mm512_cmp_pd_mask
#undef _mm512_cmp_ps_mask
#undef _mm512_cvtps_ph
#undef _mm512_extractf32x8_ps
#undef _mm512_extractf64x4_pd
#undef _mm512_extracti64x4_epi64
#undef _mm512_reduce_ps
#undef _mm512_roundscale_pd
#undef _mm512_roundscale_ps
#undef _mm512_setr_epi32
#undef _mm512_shuffle_f32x4
#undef _mm512_shuffle_ps
#undef _mm512_slli_epi32
#undef _mm512_srli_epi32

namespace pyops {

// Most are the 256-bit instruction of the same name on both halves.
#define PYOPS_BINARY(V, operation)                                                                \
  PYOPS_INTRINSIC V _mm512_##operation(V a, V b) {                                                \
    const auto x = emulation::halves(a), y = emulation::halves(b);                                \
    return emulation::join(_mm256_##operation(x.low, y.low), _mm256_##operation(x.high, y.high)); \
  }
#define PYOPS_TERNARY(V, operation)                                                          \
  PYOPS_INTRINSIC V _mm512_##operation(V a, V b, V c) {                                      \
    const auto x = emulation::halves(a), y = emulation::halves(b), z = emulation::halves(c); \
    return emulation::join(_mm256_##operation(x.low, y.low, z.low),                          \
                           _mm256_##operation(x.high, y.high, z.high));                      \
  }
PYOPS_BINARY(__m512, add_ps)
PYOPS_BINARY(__m512, sub_ps)
PYOPS_BINARY(__m512, mul_ps)
PYOPS_BINARY(__m512, div_ps)
PYOPS_BINARY(__m512, max_ps)
PYOPS_BINARY(__m512, min_ps)
PYOPS_BINARY(__m512, and_ps)
PYOPS_BINARY(__m512, andnot_ps)
PYOPS_BINARY(__m512, or_ps)
PYOPS_BINARY(__m512, unpacklo_ps)
PYOPS_BINARY(__m512, unpackhi_ps)
PYOPS_TERNARY(__m512, fmadd_ps)
PYOPS_TERNARY(__m512, fmsub_ps)
PYOPS_BINARY(__m512d, add_pd)
PYOPS_BINARY(__m512d, sub_pd)
PYOPS_BINARY(__m512d, mul_pd)
PYOPS_BINARY(__m512d, div_pd)
PYOPS_BINARY(__m512d, max_pd)
PYOPS_BINARY(__m512d, min_pd)
PYOPS_BINARY(__m512d, and_pd)
PYOPS_BINARY(__m512d, andnot_pd)
PYOPS_BINARY(__m512d, or_pd)
PYOPS_TERNARY(__m512d, fmadd_pd)
PYOPS_BINARY(__m512i, add_epi32)
PYOPS_BINARY(__m512i, mullo_epi32)
PYOPS_BINARY(__m512i, max_epu32)
PYOPS_BINARY(__m512i, max_epu16)
PYOPS_BINARY(__m512i, unpacklo_epi16)
PYOPS_BINARY(__m512i, unpackhi_epi16)
#undef PYOPS_BINARY
#undef PYOPS_TERNARY
PYOPS_INTRINSIC __m512i _mm512_and_si512(__m512i a, __m512i b) { return a & b; }
PYOPS_INTRINSIC __m512i _mm512_or_si512(__m512i a, __m512i b) { return a | b; }
PYOPS_INTRINSIC __m512i _mm512_slli_epi32(__m512i a, unsigned n) {
  const auto x = emulation::halves(a);
  const int count = static_cast<int>(n);
  return emulation::join(_mm256_slli_epi32(x.low, count), _mm256_slli_epi32(x.high, count));
}
PYOPS_INTRINSIC __m512i _mm512_srli_epi32(__m512i a, unsigned n) {
  const auto x = emulation::halves(a);
  const int count = static_cast<int>(n);
  return emulation::join(_mm256_srli_epi32(x.low, count), _mm256_srli_epi32(x.high, count));
}

// Constants and casts.
PYOPS_INTRINSIC __m512 _mm512_setzero_ps() { return __m512{}; }
PYOPS_INTRINSIC __m512d _mm512_setzero_pd() { return __m512d{}; }
PYOPS_INTRINSIC __m512i _mm512_setzero_si512() { return __m512i{}; }
PYOPS_INTRINSIC __m512 _mm512_set1_ps(float x) {
  return emulation::join(_mm256_set1_ps(x), _mm256_set1_ps(x));
}
PYOPS_INTRINSIC __m512d _mm512_set1_pd(double x) {
  return emulation::join(_mm256_set1_pd(x), _mm256_set1_pd(x));
}
PYOPS_INTRINSIC __m512i _mm512_set1_epi32(int x) {
  return emulation::join(_mm256_set1_epi32(x), _mm256_set1_epi32(x));
}
PYOPS_INTRINSIC __m512i _mm512_set1_epi16(int16_t x) {
  return emulation::join(_mm256_set1_epi16(x), _mm256_set1_epi16(x));
}
template <class... Int>  // lane 0 first
PYOPS_INTRINSIC __m512i _mm512_setr_epi32(Int... x) {
  static_assert(sizeof...(x) == 16);
  return (__m512i)__v16si{x...};
}
template <class... Int>  // lane 31 first
PYOPS_INTRINSIC __m512i _mm512_set_epi16(Int... x) {
  static_assert(sizeof...(x) == 32);
  const int16_t last_first[] = {static_cast<int16_t>(x)...};
  __v32hi lanes;
  for (int i = 0; i < 32; ++i) lanes[i] = last_first[31 - i];
  return (__m512i)lanes;
}
PYOPS_INTRINSIC __m512 _mm512_castsi512_ps(__m512i x) { return (__m512)x; }
PYOPS_INTRINSIC __m512i _mm512_castps_si512(__m512 x) { return (__m512i)x; }
PYOPS_INTRINSIC __m256i _mm512_castsi512_si256(__m512i x) { return emulation::halves(x).low; }
PYOPS_INTRINSIC __m256 _mm512_castps512_ps256(__m512 x) { return emulation::halves(x).low; }
PYOPS_INTRINSIC __m256d _mm512_castpd512_pd256(__m512d x) { return emulation::halves(x).low; }
PYOPS_INTRINSIC __m512 _mm512_zextps128_ps512(__m128 x) {
  return emulation::join(_mm256_zextps128_ps256(x), __m256{});
}
PYOPS_INTRINSIC __m512d _mm512_zextpd256_pd512(__m256d x) { return emulation::join(x, __m256d{}); }
PYOPS_INTRINSIC __m256i _mm512_extracti64x4_epi64(__m512i x, int half) {
  return half == 0 ? emulation::halves(x).low : emulation::halves(x).high;
}
PYOPS_INTRINSIC __m256 _mm512_extractf32x8_ps(__m512 x, int half) {
  return half == 0 ? emulation::halves(x).low : emulation::halves(x).high;
}
PYOPS_INTRINSIC __m256d _mm512_extractf64x4_pd(__m512d x, int half) {
  return half == 0 ? emulation::halves(x).low : emulation::halves(x).high;
}

// Masks.
PYOPS_INTRINSIC __m512 _mm512_mask_mov_ps(__m512 other, __mmask16 mask, __m512 x) {
  const auto a = emulation::halves(other), b = emulation::halves(x);
  return emulation::join(_mm256_blendv_ps(a.low, b.low, (__m256)emulation::lanes32(mask)),
                         _mm256_blendv_ps(a.high, b.high, (__m256)emulation::lanes32(mask >> 8)));
}
PYOPS_INTRINSIC __m512d _mm512_mask_mov_pd(__m512d other, __mmask8 mask, __m512d x) {
  const auto a = emulation::halves(other), b = emulation::halves(x);
  return emulation::join(_mm256_blendv_pd(a.low, b.low, (__m256d)emulation::lanes64(mask)),
                         _mm256_blendv_pd(a.high, b.high, (__m256d)emulation::lanes64(mask >> 4)));
}
PYOPS_INTRINSIC __m512i _mm512_mask_mov_epi32(__m512i other, __mmask16 mask, __m512i x) {
  return (__m512i)_mm512_mask_mov_ps((__m512)other, mask, (__m512)x);
}
PYOPS_INTRINSIC __m512 _mm512_maskz_mov_ps(__mmask16 mask, __m512 x) {
  return _mm512_mask_mov_ps(__m512{}, mask, x);
}
PYOPS_INTRINSIC __m512d _mm512_maskz_mov_pd(__mmask8 mask, __m512d x) {
  return _mm512_mask_mov_pd(__m512d{}, mask, x);
}
PYOPS_INTRINSIC __m512i _mm512_maskz_mov_epi16(__mmask32 mask, __m512i x) {
  auto lanes = (__v32hi)x;
  for (int i = 0; i < 32; ++i) lanes[i] = mask >> i & 1 ? lanes[i] : 0;
  return (__m512i)lanes;
}
PYOPS_INTRINSIC __m512 _mm512_mask_max_ps(__m512 other, __mmask16 mask, __m512 a, __m512 b) {
  return _mm512_mask_mov_ps(other, mask, _mm512_max_ps(a, b));
}
PYOPS_INTRINSIC __m512 _mm512_maskz_expand_ps(__mmask16 mask, __m512 x) {
  __m512 lanes{};
  for (int i = 0, next = 0; i < 16; ++i) {
    if (mask >> i & 1) lanes[i] = x[next++];
  }
  return lanes;
}
PYOPS_INTRINSIC __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int how) {
  const auto x = emulation::halves(a), y = emulation::halves(b);
  return static_cast<__mmask16>(emulation::mask_of(emulation::compare(x.low, y.low, how)) |
                                emulation::mask_of(emulation::compare(x.high, y.high, how)) << 8);
}
PYOPS_INTRINSIC __mmask8 _mm512_cmp_pd_mask(__m512d a, __m512d b, int how) {
  const auto x = emulation::halves(a), y = emulation::halves(b);
  return static_cast<__mmask8>(emulation::mask_of(emulation::compare(x.low, y.low, how)) |
                               emulation::mask_of(emulation::compare(x.high, y.high, how)) << 4);
}
PYOPS_INTRINSIC __mmask32 _mm512_cmpgt_epi16_mask(__m512i a, __m512i b) {
  const auto x = emulation::halves(a), y = emulation::halves(b);
  return emulation::mask_of_words(_mm256_cmpgt_epi16(x.low, y.low)) |
         emulation::mask_of_words(_mm256_cmpgt_epi16(x.high, y.high)) << 16;
}
PYOPS_INTRINSIC __mmask32 _mm512_cmpeq_epi16_mask(__m512i a, __m512i b) {
  const auto x = emulation::halves(a), y = emulation::halves(b);
  return emulation::mask_of_words(_mm256_cmpeq_epi16(x.low, y.low)) |
         emulation::mask_of_words(_mm256_cmpeq_epi16(x.high, y.high)) << 16;
}
PYOPS_INTRINSIC __mmask32 _mm512_cmpge_epu16_mask(__m512i a, __m512i b) {
  return _mm512_cmpeq_epi16_mask(_mm512_max_epu16(a, b), a);
}
PYOPS_INTRINSIC __mmask32 _mm512_cmpgt_epu16_mask(__m512i a, __m512i b) {
  return ~_mm512_cmpge_epu16_mask(b, a);
}
PYOPS_INTRINSIC __mmask16 _mm512_cmpgt_epu32_mask(__m512i a, __m512i b) {
  const auto x = emulation::halves(_mm512_max_epu32(a, b)), y = emulation::halves(b);
  const unsigned low = emulation::mask_of((__m256)_mm256_cmpeq_epi32(x.low, y.low));
  const unsigned high = emulation::mask_of((__m256)_mm256_cmpeq_epi32(x.high, y.high));
  return static_cast<__mmask16>(~(low | high << 8));
}
PYOPS_INTRINSIC __mmask8 _mm512_test_epi64_mask(__m512i a, __m512i b) {
  const auto x = emulation::halves(a & b);
  const unsigned low = emulation::mask_of((__m256d)_mm256_cmpeq_epi64(x.low, __m256i{}));
  const unsigned high = emulation::mask_of((__m256d)_mm256_cmpeq_epi64(x.high, __m256i{}));
  return static_cast<__mmask8>(~(low | high << 4));
}
PYOPS_INTRINSIC __mmask16 _mm_testn_epi8_mask(__m128i a, __m128i b) {
  return static_cast<__mmask16>(_mm_movemask_epi8(_mm_cmpeq_epi8(a & b, __m128i{})));
}

// Lanes in other places.
PYOPS_INTRINSIC __m512 _mm512_shuffle_ps(__m512 a, __m512 b, int how) {
  __m512 x;
  for (int i = 0; i < 16; ++i) {
    x[i] = (i % 4 < 2 ? a : b)[i / 4 * 4 + (how >> i % 4 * 2 & 3)];
  }
  return x;
}
PYOPS_INTRINSIC __m512 _mm512_shuffle_f32x4(__m512 a, __m512 b, int how) {
  __m512 x;
  for (int i = 0; i < 16; ++i) x[i] = (i < 8 ? a : b)[(how >> i / 4 * 2 & 3) * 4 + i % 4];
  return x;
}
PYOPS_INTRINSIC __m512 _mm512_permutex2var_ps(__m512 a, __m512i index, __m512 b) {
  const auto from = (__v16si)index;
  __m512 x;
  for (int i = 0; i < 16; ++i) x[i] = (from[i] & 16 ? b : a)[from[i] & 15];
  return x;
}
PYOPS_INTRINSIC __m512i _mm512_permutex2var_epi16(__m512i a, __m512i index, __m512i b) {
  const auto from = (__v32hi)index, first = (__v32hi)a, second = (__v32hi)b;
  __v32hi x;
  for (int i = 0; i < 32; ++i) x[i] = (from[i] & 32 ? second : first)[from[i] & 31];
  return (__m512i)x;
}
PYOPS_INTRINSIC __m512i _mm512_permutexvar_epi16(__m512i index, __m512i a) {
  return _mm512_permutex2var_epi16(a, index & (__m512i)_mm512_set1_epi16(31), a);
}
PYOPS_INTRINSIC __m512i _mm512_mask_permutexvar_epi16(__m512i other, __mmask32 mask, __m512i index,
                                                      __m512i a) {
  const auto lanes = (__v32hi)_mm512_permutexvar_epi16(index, a);
  auto x = (__v32hi)other;
  for (int i = 0; i < 32; ++i) x[i] = mask >> i & 1 ? lanes[i] : x[i];
  return (__m512i)x;
}

// Conversions.
PYOPS_INTRINSIC __m512i _mm512_cvtepu16_epi32(__m256i x) {
  return emulation::join(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)),
                         _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1)));
}
PYOPS_INTRINSIC __m512i _mm512_cvtepu8_epi32(__m128i x) {
  return emulation::join(_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8)));
}
PYOPS_INTRINSIC __m512i _mm512_cvtepu8_epi64(__m128i x) {
  return emulation::join(_mm256_cvtepu8_epi64(x), _mm256_cvtepu8_epi64(_mm_srli_si128(x, 4)));
}
PYOPS_INTRINSIC __m256i _mm512_cvtepi32_epi16(__m512i x) {
  return emulation::low_words(emulation::halves(x).low, emulation::halves(x).high);
}
PYOPS_INTRINSIC __m512 _mm512_cvtph_ps(__m256i x) {
  return emulation::join(_mm256_cvtph_ps(_mm256_castsi256_si128(x)),
                         _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)));
}
PYOPS_INTRINSIC __m256i _mm512_cvtps_ph(__m512 x, int how) {
  emulation::require(how == _MM_FROUND_TO_NEAREST_INT, "a rounding that is not emulated");
  const auto y = emulation::halves(x);
  return _mm256_set_m128i(_mm256_cvtps_ph(y.high, 0), _mm256_cvtps_ph(y.low, 0));
}
PYOPS_INTRINSIC __m256i _mm512_cvtneps_pbh(__m512 x) { return emulation::to_bf16(x); }
PYOPS_INTRINSIC __m512i _mm512_cvtne2ps_pbh(__m512 high, __m512 low) {
  return emulation::join(emulation::to_bf16(low), emulation::to_bf16(high));
}
PYOPS_INTRINSIC __m512 _mm512_dpbf16_ps(__m512 sums, __m512bh a, __m512bh b) {
  const auto s = emulation::halves(sums);
  const auto x = emulation::halves((__m512i)a), y = emulation::halves((__m512i)b);
  return emulation::join(emulation::add_pairs(s.low, x.low, y.low),
                         emulation::add_pairs(s.high, x.high, y.high));
}
PYOPS_INTRINSIC __m512 _mm512_roundscale_ps(__m512 x, int how) {
  emulation::require(how == _MM_FROUND_TO_NEAREST_INT, "a rounding that is not emulated");
  const auto y = emulation::halves(x);
  return emulation::join(_mm256_round_ps(y.low, _MM_FROUND_TO_NEAREST_INT),
                         _mm256_round_ps(y.high, _MM_FROUND_TO_NEAREST_INT));
}
PYOPS_INTRINSIC __m512d _mm512_roundscale_pd(__m512d x, int how) {
  emulation::require(how == _MM_FROUND_TO_NEAREST_INT, "a rounding that is not emulated");
  const auto y = emulation::halves(x);
  return emulation::join(_mm256_round_pd(y.low, _MM_FROUND_TO_NEAREST_INT),
                         _mm256_round_pd(y.high, _MM_FROUND_TO_NEAREST_INT));
}
PYOPS_INTRINSIC __m512 _mm512_reduce_ps(__m512 x, int how) {
  emulation::require(how == (_MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC),
                     "a rounding that is not emulated");
  const auto y = emulation::halves(x);
  return emulation::join(emulation::above_floor(y.low), emulation::above_floor(y.high));
}
PYOPS_INTRINSIC __m512 _mm512_scalef_ps(__m512 x, __m512 n) {
  const auto y = emulation::halves(x), m = emulation::halves(n);
  return emulation::join(emulation::scale(y.low, m.low), emulation::scale(y.high, m.high));
}
PYOPS_INTRINSIC __m512d _mm512_scalef_pd(__m512d x, __m512d n) {
  const auto y = emulation::halves(x), m = emulation::halves(n);
  return emulation::join(emulation::scale(y.low, m.low), emulation::scale(y.high, m.high));
}

// One number of all lanes, halved in the order of GCC's header.
PYOPS_INTRINSIC float _mm512_reduce_add_ps(__m512 x) {
  const auto y = emulation::halves(x);
  const __m256 eight = _mm256_add_ps(y.high, y.low);
  const __m128 four = _mm_add_ps(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return two[0] + two[1];
}
PYOPS_INTRINSIC double _mm512_reduce_add_pd(__m512d x) {
  const auto y = emulation::halves(x);
  const __m256d four = _mm256_add_pd(y.high, y.low);
  const __m128d two = _mm_add_pd(_mm256_extractf128_pd(four, 1), _mm256_castpd256_pd128(four));
  return two[0] + two[1];
}
PYOPS_INTRINSIC float _mm512_reduce_max_ps(__m512 x) {
  const auto y = emulation::halves(x);
  const __m256 eight = _mm256_max_ps(y.high, y.low);
  const __m128 four = _mm_max_ps(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
PYOPS_INTRINSIC double _mm512_reduce_max_pd(__m512d x) {
  const auto y = emulation::halves(x);
  const __m256d four = _mm256_max_pd(y.high, y.low);
  const __m128d two = _mm_max_pd(_mm256_extractf128_pd(four, 1), _mm256_castpd256_pd128(four));
  return _mm_cvtsd_f64(_mm_max_sd(two, _mm_unpackhi_pd(two, two)));
}
PYOPS_INTRINSIC unsigned _mm512_reduce_max_epu32(__m512i x) {
  const auto lanes = (__v16su)x;
  unsigned largest = 0;
  for (int i = 0; i < 16; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  return largest;
}

}  // namespace pyops

#undef PYOPS_INTRINSIC

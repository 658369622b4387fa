// Vec of AVX-512: sixteen float32 or eight float64.
#pragma once

#include <immintrin.h>

#include "core/vec.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// The two halves of a vector as pairs: x[0], x[16], x[1], x[17], …
inline __m512i interleave_halves(__m512i x) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, x);
}

template <>
struct Vec<float> {
  static constexpr int kWidth = 16;
  __m512 v;

  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec set1(float x) { return {_mm512_set1_ps(x)}; }
  static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }

  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
  static Vec load(const BFloat16* p) { return widen_bf16(_mm256_loadu_si256((const __m256i*)p)); }
  static Vec load(const BFloat16* p, int n) {
    return widen_bf16(_mm256_maskz_loadu_epi16(first(n), p));
  }
  static Vec load(const Float16* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))};
  }
  static Vec load(const Float16* p, int n) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p))};
  }
  // Element i from p[i * stride]; `stride` in elements, the last of which 32 bits count.
  static Vec gather(const float* p, int stride) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return {_mm512_i32gather_ps(_mm512_mullo_epi32(lane, _mm512_set1_epi32(stride)), p, 4)};
  }

  // p[0], p[2], …, p[30], of which nothing behind is read.
  static Vec load_even(const float* p) {
    const __m512i lane =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31);
    return {_mm512_permutex2var_ps(load(p).v, lane, load(p + 15).v)};
  }

  // n of them.
  static Vec load_even(const BFloat16* p, int n) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(even_words(p, n), 16))};
  }
  static Vec load_even(const Float16* p, int n) {
    return {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(even_words(p, n)))};
  }

  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(float* p, int n) const { _mm512_mask_storeu_ps(p, first(n), v); }
  void store(BFloat16* p) const { _mm256_storeu_si256((__m256i*)p, narrow_bf16()); }
  void store(BFloat16* p, int n) const { _mm256_mask_storeu_epi16(p, first(n), narrow_bf16()); }
  void store(Float16* p) const { _mm256_storeu_si256((__m256i*)p, narrow_f16()); }
  void store(Float16* p, int n) const { _mm256_mask_storeu_epi16(p, first(n), narrow_f16()); }

  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }  // a * b + c
  // *a * b + c in one instruction; the compiler would load what several products share once, as an
  // instruction of its own.
  static Vec fma(const float* a, Vec b, Vec c) {
#if defined(PYOPS_EMULATED)
    return fma(set1(*a), b, c);
#else
    asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(c.v) : "v"(b.v), "m"(*a));
    return c;
#endif
  }
  // As the instruction does it: the second operand when either is NaN.
  static Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
  static Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
  // 0 where condition <= 0, else x: NaN counts as positive, as in PyTorch's ReLU backward.
  static Vec where_positive(Vec condition, Vec x) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(condition.v, _mm512_setzero_ps(), _CMP_NLE_UQ),
                                x.v)};
  }
  // x, but 0 where `condition` is below `limit`; what belongs to a NaN stays.
  static Vec zero_below(Vec condition, Vec limit, Vec x) {
    const __mmask16 below = _mm512_cmp_ps_mask(condition.v, limit.v, _CMP_LT_OQ);
    return {_mm512_mask_mov_ps(x.v, below, _mm512_setzero_ps())};
  }
  static Vec abs(Vec a) { return {_mm512_andnot_ps(_mm512_set1_ps(-0.0f), a.v)}; }
  // The larger of |a| and b, which is not negative; NaN, of either sign, is the largest.
  static Vec max_magnitude(Vec a, Vec b) {
    const __m512i bits = _mm512_castps_si512(abs(a).v);
    return {_mm512_castsi512_ps(_mm512_max_epu32(bits, _mm512_castps_si512(b.v)))};
  }
  static Vec copysign(Vec magnitude, Vec sign) {
    return {_mm512_or_ps(magnitude.v, _mm512_and_ps(_mm512_set1_ps(-0.0f), sign.v))};
  }
  static Vec round(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT)}; }
  // x * 2^n for an integral n.
  static Vec ldexp(Vec x, Vec n) { return {_mm512_scalef_ps(x.v, n.v)}; }
  // 2^n, which is a normal number.
  static Vec power_of_two(Vec n) { return ldexp(set1(1), n); }
  float sum() const { return _mm512_reduce_add_ps(v); }
  // The sums of four, in the first four lanes.
  static Vec sums_of(const Vec (&x)[4]) {
    const auto half = [](Vec a) {
      return _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    };
    const __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(half(x[0]), half(x[1])),
                                    _mm256_hadd_ps(half(x[2]), half(x[3])));
    return {
        _mm512_zextps128_ps512(_mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)))};
  }
  float reduce_max() const { return _mm512_reduce_max_ps(v); }

 private:
  static __m512i even_words(const void* p, int n) {
    return _mm512_maskz_loadu_epi16(0x55555555u >> (32 - 2 * n), p);
  }
  static Vec widen_bf16(__m256i h) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
  }
  __m256i narrow_f16() const { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
  __m256i narrow_bf16() const {
#if defined(__AVX512BF16__)
    return (__m256i)_mm512_cvtneps_pbh(v);  // zero for a denormal, as everything AMX computes
#else
    const __m512i u = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i top =
        _mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, _mm512_set1_epi32(0x7fc0));
    return _mm512_cvtepi32_epi16(top);
#endif
  }
};

template <>
struct Vec<double> {
  static constexpr int kWidth = 8;
  __m512d v;

  static Vec zero() { return {_mm512_setzero_pd()}; }
  static Vec set1(double x) { return {_mm512_set1_pd(x)}; }
  static __mmask8 first(int n) { return static_cast<__mmask8>((1u << n) - 1); }
  static Vec load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static Vec load(const double* p, int n) { return {_mm512_maskz_loadu_pd(first(n), p)}; }
  void store(double* p) const { _mm512_storeu_pd(p, v); }
  void store(double* p, int n) const { _mm512_mask_storeu_pd(p, first(n), v); }
  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_pd(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_pd(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_pd(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm512_div_pd(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
  static Vec fma(const double* a, Vec b, Vec c) {
#if defined(PYOPS_EMULATED)
    return fma(set1(*a), b, c);
#else
    asm("vfmadd231pd %2%{1to8%}, %1, %0" : "+v"(c.v) : "v"(b.v), "m"(*a));
    return c;
#endif
  }
  static Vec max(Vec a, Vec b) { return {_mm512_max_pd(a.v, b.v)}; }
  static Vec min(Vec a, Vec b) { return {_mm512_min_pd(a.v, b.v)}; }
  static Vec where_positive(Vec condition, Vec x) {
    return {_mm512_maskz_mov_pd(_mm512_cmp_pd_mask(condition.v, _mm512_setzero_pd(), _CMP_NLE_UQ),
                                x.v)};
  }
  static Vec zero_below(Vec condition, Vec limit, Vec x) {
    const __mmask8 below = _mm512_cmp_pd_mask(condition.v, limit.v, _CMP_LT_OQ);
    return {_mm512_mask_mov_pd(x.v, below, _mm512_setzero_pd())};
  }
  static Vec abs(Vec a) { return {_mm512_andnot_pd(_mm512_set1_pd(-0.0), a.v)}; }
  static Vec max_magnitude(Vec a, Vec b) {
    const Vec x = abs(a);
    return {((x.v > b.v) | (x.v != x.v)) ? x.v : b.v};
  }
  static Vec copysign(Vec magnitude, Vec sign) {
    return {_mm512_or_pd(magnitude.v, _mm512_and_pd(_mm512_set1_pd(-0.0), sign.v))};
  }
  static Vec round(Vec a) { return {_mm512_roundscale_pd(a.v, _MM_FROUND_TO_NEAREST_INT)}; }
  static Vec ldexp(Vec x, Vec n) { return {_mm512_scalef_pd(x.v, n.v)}; }
  static Vec power_of_two(Vec n) { return ldexp(set1(1), n); }
  double sum() const { return _mm512_reduce_add_pd(v); }
  static Vec sums_of(const Vec (&x)[4]) {
    const auto half = [](Vec a) {
      return _mm256_add_pd(_mm512_castpd512_pd256(a.v), _mm512_extractf64x4_pd(a.v, 1));
    };
    const __m256d low = _mm256_hadd_pd(half(x[0]), half(x[1]));
    const __m256d high = _mm256_hadd_pd(half(x[2]), half(x[3]));
    return {_mm512_zextpd256_pd512(_mm256_add_pd(_mm256_blend_pd(low, high, 0b1100),
                                                 _mm256_permute2f128_pd(low, high, 0x21)))};
  }
  double reduce_max() const { return _mm512_reduce_max_pd(v); }
};

// Rows of a W×W block become its columns; W is the vector width.
inline void transpose(Vec<float> (&r)[16]) {
  __m512 a[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(r[i].v, r[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
  }
  __m512 b[16];
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    const __m512 even_low = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88);
    const __m512 odd_low = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xdd);
    const __m512 even_high = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88);
    const __m512 odd_high = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xdd);
    r[i].v = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    r[i + 8].v = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    r[i + 4].v = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    r[i + 12].v = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE

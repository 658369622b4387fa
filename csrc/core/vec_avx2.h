// Vec of AVX2: eight float32 or four float64.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "core/vec.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

template <>
struct Vec<float> {
  static constexpr int kWidth = 8;
  __m256 v;

  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec set1(float x) { return {_mm256_set1_ps(x)}; }
  static __m256i first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const float* p, int n) { return {_mm256_maskload_ps(p, first(n))}; }
  static Vec load(const BFloat16* p) { return widen_bf16(_mm_loadu_si128((const __m128i*)p)); }
  static Vec load(const BFloat16* p, int n) { return widen_bf16(load_first(p, n)); }
  static Vec load(const Float16* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p))};
  }
  static Vec load(const Float16* p, int n) { return {_mm256_cvtph_ps(load_first(p, n))}; }
  static Vec gather(const float* p, int stride) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return {_mm256_i32gather_ps(p, _mm256_mullo_epi32(lane, _mm256_set1_epi32(stride)), 4)};
  }

  // p[0], p[2], …, p[14], of which nothing behind is read.
  static Vec load_even(const float* p) {
    const __m256 x = _mm256_loadu_ps(p), y = _mm256_loadu_ps(p + 7);
    const __m256d pairs = _mm256_castps_pd(_mm256_shuffle_ps(x, y, _MM_SHUFFLE(3, 1, 2, 0)));
    return {_mm256_castpd_ps(_mm256_permute4x64_pd(pairs, _MM_SHUFFLE(3, 1, 2, 0)))};
  }

  void store(float* p) const { _mm256_storeu_ps(p, v); }
  // In pieces: a masked store is dozens of micro-operations on AMD's processors.
  void store(float* p, int n) const {
    if (n >= kWidth) return store(p);
    __m128 rest = _mm256_castps256_ps128(v);
    if (n & 4) {
      _mm_storeu_ps(p, rest);
      rest = _mm256_extractf128_ps(v, 1);
      p += 4;
    }
    if (n & 2) {
      _mm_storel_pi((__m64*)p, rest);
      rest = _mm_movehl_ps(rest, rest);
      p += 2;
    }
    if (n & 1) _mm_store_ss(p, rest);
  }
  void store(BFloat16* p) const { _mm_storeu_si128((__m128i*)p, narrow_bf16()); }
  void store(BFloat16* p, int n) const { store_first(p, n, narrow_bf16()); }
  void store(Float16* p) const { _mm_storeu_si128((__m128i*)p, narrow_f16()); }
  void store(Float16* p, int n) const { store_first(p, n, narrow_f16()); }

  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
  static Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
  static Vec where_positive(Vec condition, Vec x) {
    return {_mm256_and_ps(_mm256_cmp_ps(condition.v, _mm256_setzero_ps(), _CMP_NLE_UQ), x.v)};
  }
  static Vec zero_below(Vec condition, Vec limit, Vec x) {
    return {_mm256_andnot_ps(_mm256_cmp_ps(condition.v, limit.v, _CMP_LT_OQ), x.v)};
  }
  static Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
  // The larger of |a| and b, which is not negative; NaN, of either sign, is the largest.
  static Vec max_magnitude(Vec a, Vec b) {
    const __m256i bits = _mm256_castps_si256(abs(a).v);
    return {_mm256_castsi256_ps(_mm256_max_epu32(bits, _mm256_castps_si256(b.v)))};
  }
  static Vec copysign(Vec magnitude, Vec sign) {
    return {_mm256_or_ps(magnitude.v, _mm256_and_ps(_mm256_set1_ps(-0.0f), sign.v))};
  }
  static Vec round(Vec a) {
    return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  // Two steps, so that results down to the smallest subnormal come out rounded once.
  static Vec ldexp(Vec x, Vec n) {
    const __m256i e = _mm256_cvtps_epi32(n.v), half = _mm256_srai_epi32(e, 1);
    return {_mm256_mul_ps(_mm256_mul_ps(x.v, power_of_two(half)),
                          power_of_two(_mm256_sub_epi32(e, half)))};
  }
  static Vec power_of_two(Vec n) { return {power_of_two(_mm256_cvtps_epi32(n.v))}; }
  float sum() const {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  // The sums of four, in the first four lanes.
  static Vec sums_of(const Vec (&x)[4]) {
    const __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(x[0].v, x[1].v), _mm256_hadd_ps(x[2].v, x[3].v));
    return {
        _mm256_zextps128_ps256(_mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)))};
  }
  float reduce_max() const {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
  }

 private:
  static __m256 power_of_two(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  }
  static __m128i load_first(const void* from, int n) {
    const auto* p = static_cast<const uint16_t*>(from);
    if (n >= kWidth) return _mm_loadu_si128((const __m128i*)p);
    __m128i x = _mm_cvtsi32_si128(n & 1 ? p[n - 1] : 0);
    if (n & 2) {
      int pair;  // _mm_loadu_si32 of GCC 11.1 and 11.2 fills another lane (its bug 99754)
      memcpy(&pair, p + (n & 4), sizeof pair);
      x = _mm_or_si128(_mm_slli_si128(x, 4), _mm_cvtsi32_si128(pair));
    }
    return n & 4 ? _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i*)p), x) : x;
  }
  static void store_first(void* to, int n, __m128i x) {
    auto* p = static_cast<uint16_t*>(to);
    if (n >= kWidth) return _mm_storeu_si128((__m128i*)p, x);
    if (n & 4) {
      _mm_storel_epi64((__m128i*)p, x);
      x = _mm_unpackhi_epi64(x, x);
      p += 4;
    }
    if (n & 2) {
      _mm_storeu_si32(p, x);
      x = _mm_srli_si128(x, 4);
      p += 2;
    }
    if (n & 1) *p = static_cast<uint16_t>(_mm_cvtsi128_si32(x));
  }
  static Vec widen_bf16(__m128i h) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16))};
  }
  __m128i narrow_f16() const { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
  __m128i narrow_bf16() const {
    const __m256i u = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i top =
        _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_set1_epi32(0x7fc0), nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
  }
};

template <>
struct Vec<double> {
  static constexpr int kWidth = 4;
  __m256d v;

  static Vec zero() { return {_mm256_setzero_pd()}; }
  static Vec set1(double x) { return {_mm256_set1_pd(x)}; }
  static __m256i first(int n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  }
  static Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static Vec load(const double* p, int n) { return {_mm256_maskload_pd(p, first(n))}; }
  void store(double* p) const { _mm256_storeu_pd(p, v); }
  void store(double* p, int n) const {
    if (n >= kWidth) return store(p);
    __m128d rest = _mm256_castpd256_pd128(v);
    if (n & 2) {
      _mm_storeu_pd(p, rest);
      rest = _mm256_extractf128_pd(v, 1);
      p += 2;
    }
    if (n & 1) _mm_store_sd(p, rest);
  }
  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_pd(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_pd(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_pd(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm256_div_pd(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm256_max_pd(a.v, b.v)}; }
  static Vec min(Vec a, Vec b) { return {_mm256_min_pd(a.v, b.v)}; }
  static Vec where_positive(Vec condition, Vec x) {
    return {_mm256_and_pd(_mm256_cmp_pd(condition.v, _mm256_setzero_pd(), _CMP_NLE_UQ), x.v)};
  }
  static Vec zero_below(Vec condition, Vec limit, Vec x) {
    return {_mm256_andnot_pd(_mm256_cmp_pd(condition.v, limit.v, _CMP_LT_OQ), x.v)};
  }
  static Vec abs(Vec a) { return {_mm256_andnot_pd(_mm256_set1_pd(-0.0), a.v)}; }
  static Vec max_magnitude(Vec a, Vec b) {
    const Vec x = abs(a);
    return {((x.v > b.v) | (x.v != x.v)) ? x.v : b.v};
  }
  static Vec copysign(Vec magnitude, Vec sign) {
    return {_mm256_or_pd(magnitude.v, _mm256_and_pd(_mm256_set1_pd(-0.0), sign.v))};
  }
  static Vec round(Vec a) {
    return {_mm256_round_pd(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  static Vec ldexp(Vec x, Vec n) {
    const __m128i e = _mm256_cvtpd_epi32(n.v), half = _mm_srai_epi32(e, 1);
    return {_mm256_mul_pd(_mm256_mul_pd(x.v, power_of_two(half)),
                          power_of_two(_mm_sub_epi32(e, half)))};
  }
  static Vec power_of_two(Vec n) { return {power_of_two(_mm256_cvtpd_epi32(n.v))}; }
  double sum() const {
    const __m128d s = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
  }
  static Vec sums_of(const Vec (&x)[4]) {
    const __m256d low = _mm256_hadd_pd(x[0].v, x[1].v), high = _mm256_hadd_pd(x[2].v, x[3].v);
    return {
        _mm256_add_pd(_mm256_blend_pd(low, high, 0b1100), _mm256_permute2f128_pd(low, high, 0x21))};
  }
  double reduce_max() const {
    const __m128d s = _mm_max_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_max_sd(s, _mm_unpackhi_pd(s, s)));
  }

 private:
  static __m256d power_of_two(__m128i n) {
    const __m256i biased = _mm256_cvtepi32_epi64(_mm_add_epi32(n, _mm_set1_epi32(1023)));
    return _mm256_castsi256_pd(_mm256_slli_epi64(biased, 52));
  }
};

// Rows of a W×W block become its columns; W is the vector width.
inline void transpose(Vec<float> (&r)[8]) {
  __m256 a[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(r[i].v, r[i + 1].v);
    a[i + 1] = _mm256_unpackhi_ps(r[i].v, r[i + 1].v);
  }
  __m256 b[8];
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    r[i].v = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
    r[i + 4].v = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
  }
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE

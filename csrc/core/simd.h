// Vec<T>: one register of the instruction set this file is compiled for. Everything lives in a
// namespace of that instruction set, or the linker could keep the AVX-512 copy of an inline
// function and an older CPU would run it.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "core/dtype.h"

#if defined(__AMX_TILE__)
#define PYOPS_ISA_NAMESPACE amx
#elif defined(__AVX512F__)
#define PYOPS_ISA_NAMESPACE avx512
#elif defined(__AVX2__)
#define PYOPS_ISA_NAMESPACE avx2
#else
#error "core/simd.h belongs in _avx2, _avx512 and _amx files"
#endif

namespace pyops::PYOPS_ISA_NAMESPACE {

// What an operator's table offers the kernels of this instruction set.
#if defined(__AMX_TILE__)
inline constexpr DtypeSet kKernelTypes = kTileTypes;
#else
inline constexpr DtypeSet kKernelTypes = kAnyFloat;
#endif

template <class T>
struct Vec;

#if defined(__AVX512F__)

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
  // Element i from p[i * stride]; `stride` in elements, small enough for 32-bit byte offsets.
  static Vec gather(const float* p, int stride) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return {_mm512_i32gather_ps(_mm512_mullo_epi32(lane, _mm512_set1_epi32(stride)), p, 4)};
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
    asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(c.v) : "v"(b.v), "m"(*a));
    return c;
  }
  // As the instruction does it: the second operand when either is NaN.
  static Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
  static Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
  // 0 where condition <= 0, else x: NaN counts as positive, as in PyTorch's ReLU backward.
  static Vec where_positive(Vec condition, Vec x) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(condition.v, _mm512_setzero_ps(), _CMP_NLE_UQ),
                                x.v)};
  }
  // x where a > b or a is NaN, else y: how a running maximum moves on.
  static Vec where_exceeds(Vec a, Vec b, Vec x, Vec y) {
    const __mmask16 take = static_cast<__mmask16>(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ) |
                                                  _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q));
    return {_mm512_mask_mov_ps(y.v, take, x.v)};
  }
  // x, but 0 where `condition` is below `limit`; what belongs to a NaN stays.
  static Vec zero_below(Vec condition, Vec limit, Vec x) {
    const __mmask16 below = _mm512_cmp_ps_mask(condition.v, limit.v, _CMP_LT_OQ);
    return {_mm512_mask_mov_ps(x.v, below, _mm512_setzero_ps())};
  }
  static Vec abs(Vec a) { return {_mm512_andnot_ps(_mm512_set1_ps(-0.0f), a.v)}; }
  static Vec copysign(Vec magnitude, Vec sign) {
    return {_mm512_or_ps(magnitude.v, _mm512_and_ps(_mm512_set1_ps(-0.0f), sign.v))};
  }
  static Vec round(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT)}; }
  // x * 2^n for an integral n.
  static Vec ldexp(Vec x, Vec n) { return {_mm512_scalef_ps(x.v, n.v)}; }
  float sum() const { return _mm512_reduce_add_ps(v); }
  float reduce_max() const { return _mm512_reduce_max_ps(v); }

 private:
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
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
  static Vec fma(const double* a, Vec b, Vec c) {
    asm("vfmadd231pd %2%{1to8%}, %1, %0" : "+v"(c.v) : "v"(b.v), "m"(*a));
    return c;
  }
  static Vec max(Vec a, Vec b) { return {_mm512_max_pd(a.v, b.v)}; }
  static Vec where_positive(Vec condition, Vec x) {
    return {_mm512_maskz_mov_pd(_mm512_cmp_pd_mask(condition.v, _mm512_setzero_pd(), _CMP_NLE_UQ),
                                x.v)};
  }
  static Vec where_exceeds(Vec a, Vec b, Vec x, Vec y) {
    const __mmask8 take = static_cast<__mmask8>(_mm512_cmp_pd_mask(a.v, b.v, _CMP_GT_OQ) |
                                                _mm512_cmp_pd_mask(a.v, a.v, _CMP_UNORD_Q));
    return {_mm512_mask_mov_pd(y.v, take, x.v)};
  }
  double sum() const { return _mm512_reduce_add_pd(v); }
};

#else  // AVX2

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

  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(float* p, int n) const { _mm256_maskstore_ps(p, first(n), v); }
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
  static Vec where_exceeds(Vec a, Vec b, Vec x, Vec y) {
    const __m256 take =
        _mm256_or_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ), _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
    return {_mm256_blendv_ps(y.v, x.v, take)};
  }
  static Vec zero_below(Vec condition, Vec limit, Vec x) {
    return {_mm256_andnot_ps(_mm256_cmp_ps(condition.v, limit.v, _CMP_LT_OQ), x.v)};
  }
  static Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
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
  float sum() const {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
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
  static __m128i load_first(const void* p, int n) {
    alignas(16) uint16_t h[8] = {};
    __builtin_memcpy(h, p, sizeof(uint16_t) * static_cast<unsigned>(n));
    return _mm_load_si128((const __m128i*)h);
  }
  static void store_first(void* p, int n, __m128i x) {
    alignas(16) uint16_t h[8];
    _mm_store_si128((__m128i*)h, x);
    __builtin_memcpy(p, h, sizeof(uint16_t) * static_cast<unsigned>(n));
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
  void store(double* p, int n) const { _mm256_maskstore_pd(p, first(n), v); }
  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_pd(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_pd(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_pd(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm256_max_pd(a.v, b.v)}; }
  static Vec where_positive(Vec condition, Vec x) {
    return {_mm256_and_pd(_mm256_cmp_pd(condition.v, _mm256_setzero_pd(), _CMP_NLE_UQ), x.v)};
  }
  static Vec where_exceeds(Vec a, Vec b, Vec x, Vec y) {
    const __m256d take =
        _mm256_or_pd(_mm256_cmp_pd(a.v, b.v, _CMP_GT_OQ), _mm256_cmp_pd(a.v, a.v, _CMP_UNORD_Q));
    return {_mm256_blendv_pd(y.v, x.v, take)};
  }
  double sum() const {
    const __m128d s = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
  }
};

#endif

// Rows of a W×W block become its columns; W is the vector width.
#if defined(__AVX512F__)
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
#else
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
#endif

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

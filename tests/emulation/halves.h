// What the emulated intrinsics are made of: a register of 512 bits as its halves, masks as lanes,
// and the instructions that AVX2 has no counterpart of.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

// Inlined whatever the optimisation: no code of these may stand outside a kernel's namespace.
#define PYOPS_INTRINSIC [[gnu::always_inline]] inline

namespace pyops::emulation {

[[noreturn]] void refuse(const char* what);  // says so and aborts
float scale_special(float x, float n);       // VSCALEFPS and VSCALEFPD of any numbers
double scale_special(double x, double n);

PYOPS_INTRINSIC void require(bool holds, const char* what) {
  if (!holds) refuse(what);
}
PYOPS_INTRINSIC void require_aligned(const void* p) {
  require(reinterpret_cast<uintptr_t>(p) % 64 == 0, "an aligned access of 64 bytes elsewhere");
}

// A register is its two halves: V of 512 bits, H of 256.
#define PYOPS_HALVES(V, H)                             \
  struct V##Halves {                                   \
    H low, high;                                       \
  };                                                   \
  PYOPS_INTRINSIC V##Halves halves(V x) {              \
    const auto* half = reinterpret_cast<const H*>(&x); \
    return {half[0], half[1]};                         \
  }                                                    \
  PYOPS_INTRINSIC V join(H low, H high) {              \
    V x;                                               \
    auto* half = reinterpret_cast<H*>(&x);             \
    half[0] = low;                                     \
    half[1] = high;                                    \
    return x;                                          \
  }
PYOPS_HALVES(__m512, __m256)
PYOPS_HALVES(__m512d, __m256d)
PYOPS_HALVES(__m512i, __m256i)
#undef PYOPS_HALVES

// Lanes of ones where the mask's bits are.
PYOPS_INTRINSIC __m256i lanes32(unsigned mask) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(mask)), bit), bit);
}
PYOPS_INTRINSIC __m256i lanes64(unsigned mask) {
  const __m256i bit = _mm256_setr_epi64x(1, 2, 4, 8);
  return _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(mask), bit), bit);
}
// And back.
PYOPS_INTRINSIC unsigned mask_of(__m256 lanes) {
  return static_cast<unsigned>(_mm256_movemask_ps(lanes));
}
PYOPS_INTRINSIC unsigned mask_of(__m256d lanes) {
  return static_cast<unsigned>(_mm256_movemask_pd(lanes));
}
PYOPS_INTRINSIC unsigned mask_of_words(__m256i lanes) {
  const __m128i bytes =
      _mm_packs_epi16(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
  return static_cast<unsigned>(_mm_movemask_epi8(bytes));
}

// Enabled elements alone are read or written.
template <class Element>
PYOPS_INTRINSIC void load_enabled(void* lanes, uint32_t mask, const void* from, int count) {
  const auto* p = static_cast<const Element*>(from);
  for (int i = 0; i < count; ++i) {
    if (mask >> i & 1u) std::memcpy(static_cast<Element*>(lanes) + i, p + i, sizeof(Element));
  }
}
template <class Element>
PYOPS_INTRINSIC void store_enabled(void* to, uint32_t mask, const void* lanes, int count) {
  const auto* p = static_cast<const Element*>(lanes);
  for (int i = 0; i < count; ++i) {
    if (mask >> i & 1u) std::memcpy(static_cast<Element*>(to) + i, p + i, sizeof(Element));
  }
}

PYOPS_INTRINSIC __m256 compare(__m256 a, __m256 b, int how) {
  if (how == _CMP_LT_OQ) return _mm256_cmp_ps(a, b, _CMP_LT_OQ);
  if (how == _CMP_GT_OQ) return _mm256_cmp_ps(a, b, _CMP_GT_OQ);
  if (how == _CMP_NLE_UQ) return _mm256_cmp_ps(a, b, _CMP_NLE_UQ);
  require(how == _CMP_UNORD_Q, "a comparison that is not emulated");
  return _mm256_cmp_ps(a, b, _CMP_UNORD_Q);
}
PYOPS_INTRINSIC __m256d compare(__m256d a, __m256d b, int how) {
  if (how == _CMP_LT_OQ) return _mm256_cmp_pd(a, b, _CMP_LT_OQ);
  if (how == _CMP_GT_OQ) return _mm256_cmp_pd(a, b, _CMP_GT_OQ);
  if (how == _CMP_NLE_UQ) return _mm256_cmp_pd(a, b, _CMP_NLE_UQ);
  require(how == _CMP_UNORD_Q, "a comparison that is not emulated");
  return _mm256_cmp_pd(a, b, _CMP_UNORD_Q);
}

// VREDUCEPS, rounding down: x - floor(x), itself rounded down. Only above -0.5 is the difference
// inexact, and there adding the floor again tells.
PYOPS_INTRINSIC __m256 above_floor(__m256 x) {
  const __m256 floor = _mm256_round_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  const __m256 difference = _mm256_sub_ps(x, floor);
  const __m256 too_high = _mm256_cmp_ps(_mm256_add_ps(difference, floor), x, _CMP_GT_OQ);
  const __m256 down = _mm256_castsi256_ps(
      _mm256_add_epi32(_mm256_castps_si256(difference), _mm256_castps_si256(too_high)));
  const __m256 zero = _mm256_cmp_ps(difference, _mm256_setzero_ps(), _CMP_EQ_OQ);
  const __m256 signed_zero = _mm256_blendv_ps(down, _mm256_set1_ps(-0.0f), zero);
  const __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
  const __m256 infinite = _mm256_cmp_ps(magnitude, _mm256_set1_ps(__builtin_inff()), _CMP_EQ_OQ);
  return _mm256_andnot_ps(infinite, signed_zero);
}

// VSCALEFPS: x·2^floor(n), rounded once, as float64 holds the product exactly.
PYOPS_INTRINSIC __m128 scale(__m128 x, __m128 n) {
  const __m128 floor = _mm_round_ps(n, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  const __m128 limited = _mm_max_ps(_mm_min_ps(floor, _mm_set1_ps(400)), _mm_set1_ps(-400));
  const __m256i biased =
      _mm256_cvtepi32_epi64(_mm_add_epi32(_mm_cvtps_epi32(limited), _mm_set1_epi32(1023)));
  const __m256d power = _mm256_castsi256_pd(_mm256_slli_epi64(biased, 52));
  return _mm256_cvtpd_ps(_mm256_mul_pd(_mm256_cvtps_pd(x), power));
}
PYOPS_INTRINSIC __m256 scale(__m256 x, __m256 n) {
  __m256 y = _mm256_set_m128(scale(_mm256_extractf128_ps(x, 1), _mm256_extractf128_ps(n, 1)),
                             scale(_mm256_castps256_ps128(x), _mm256_castps256_ps128(n)));
  const __m256 finite = _mm256_cmp_ps(_mm256_sub_ps(n, n), _mm256_setzero_ps(), _CMP_EQ_OQ);
  const __m256 ordered = _mm256_cmp_ps(x, x, _CMP_ORD_Q);
  for (unsigned special = 0xff & ~mask_of(_mm256_and_ps(finite, ordered)); special != 0;
       special &= special - 1) {
    const int i = __builtin_ctz(special);
    y[i] = scale_special(x[i], n[i]);
  }
  return y;
}
// VSCALEFPD, where 2^floor(n) is a number that a product rounds with once.
PYOPS_INTRINSIC __m256d scale(__m256d x, __m256d n) {
  const __m256d floor = _mm256_round_pd(n, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  const __m256d usual = _mm256_and_pd(_mm256_cmp_pd(floor, _mm256_set1_pd(-1022), _CMP_GE_OQ),
                                      _mm256_cmp_pd(floor, _mm256_set1_pd(1023), _CMP_LE_OQ));
  const __m128i biased = _mm_add_epi32(_mm256_cvtpd_epi32(floor), _mm_set1_epi32(1023));
  const __m256i power = _mm256_slli_epi64(_mm256_cvtepi32_epi64(biased), 52);
  __m256d y = _mm256_mul_pd(x, _mm256_castsi256_pd(power));
  for (unsigned special = 0xf & ~mask_of(usual); special != 0; special &= special - 1) {
    const int i = __builtin_ctz(special);
    y[i] = scale_special(x[i], n[i]);
  }
  return y;
}

// VCVTNE2PS2BF16 and VCVTNEPS2BF16: to nearest even whatever the control register says, zero for
// a denormal, NaN stays quiet NaN. The words' lanes hold the result in their low half.
PYOPS_INTRINSIC __m256i bf16_words(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
  const __m256i high = _mm256_srli_epi32(bits, 16);
  const __m256i nan = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7f800000));
  const __m256i tiny = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x00800000), magnitude);
  rounded = _mm256_blendv_epi8(rounded, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
  return _mm256_blendv_epi8(rounded, _mm256_and_si256(high, _mm256_set1_epi32(0x8000)), tiny);
}
// The low halves of sixteen dwords.
PYOPS_INTRINSIC __m256i low_words(__m256i a, __m256i b) {
  const __m256i low = _mm256_set1_epi32(0xffff);
  const __m256i packed = _mm256_packus_epi32(_mm256_and_si256(a, low), _mm256_and_si256(b, low));
  return _mm256_permute4x64_epi64(packed, 0xd8);
}
PYOPS_INTRINSIC __m256i to_bf16(__m512 x) {
  return low_words(bf16_words(halves(x).low), bf16_words(halves(x).high));
}

// Zero, with their sign, for subnormals.
PYOPS_INTRINSIC __m256 flushed(__m256 x) {
  const __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
  const __m256 tiny = _mm256_cmp_ps(magnitude, _mm256_set1_ps(0x1p-126f), _CMP_LT_OQ);
  return _mm256_andnot_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), tiny), x);
}
// sums + a·b for pairs of bfloat16: the odd numbers' product first, each step rounded, no subnormals.
PYOPS_INTRINSIC __m256 add_pairs(__m256 sums, __m256i a, __m256i b) {
  const auto odd = [](__m256i x) { return (__m256)_mm256_and_si256(x, _mm256_set1_epi32(~0xffff)); };
  const auto even = [](__m256i x) { return (__m256)_mm256_slli_epi32(x, 16); };
  sums = flushed(_mm256_fmadd_ps(flushed(odd(a)), flushed(odd(b)), flushed(sums)));
  return flushed(_mm256_fmadd_ps(flushed(even(a)), flushed(even(b)), sums));
}

}  // namespace pyops::emulation

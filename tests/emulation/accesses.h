// Loads and stores of 512 bits, and masked ones.
#pragma once

#include "halves.h"

#undef _mm512_i32gather_ps

namespace pyops {

PYOPS_INTRINSIC __m512i _mm512_loadu_si512(const void* p) {
  const auto* halves = static_cast<const __m256i*>(p);
  return emulation::join(_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1));
}
PYOPS_INTRINSIC void _mm512_storeu_si512(void* p, __m512i x) {
  auto* halves = static_cast<__m256i*>(p);
  _mm256_storeu_si256(halves, emulation::halves(x).low);
  _mm256_storeu_si256(halves + 1, emulation::halves(x).high);
}
PYOPS_INTRINSIC __m512i _mm512_load_si512(const void* p) {
  emulation::require_aligned(p);
  return _mm512_loadu_si512(p);
}
PYOPS_INTRINSIC void _mm512_store_si512(void* p, __m512i x) {
  emulation::require_aligned(p);
  _mm512_storeu_si512(p, x);
}
PYOPS_INTRINSIC __m512 _mm512_loadu_ps(const void* p) { return (__m512)_mm512_loadu_si512(p); }
PYOPS_INTRINSIC __m512 _mm512_load_ps(const void* p) { return (__m512)_mm512_load_si512(p); }
PYOPS_INTRINSIC __m512d _mm512_loadu_pd(const void* p) { return (__m512d)_mm512_loadu_si512(p); }
PYOPS_INTRINSIC void _mm512_storeu_ps(void* p, __m512 x) { _mm512_storeu_si512(p, (__m512i)x); }
PYOPS_INTRINSIC void _mm512_store_ps(void* p, __m512 x) { _mm512_store_si512(p, (__m512i)x); }
PYOPS_INTRINSIC void _mm512_storeu_pd(void* p, __m512d x) { _mm512_storeu_si512(p, (__m512i)x); }

#define PYOPS_MASKED_LOAD(V, Mask, name, whole, Element)                              \
  PYOPS_INTRINSIC V name(Mask mask, const void* p) {                                  \
    constexpr int kCount = sizeof(V) / sizeof(Element);                               \
    if (mask == static_cast<Mask>(~0ull >> (64 - kCount))) return whole((const V*)p); \
    V lanes{};                                                                        \
    emulation::load_enabled<Element>(&lanes, mask, p, kCount);                        \
    return lanes;                                                                     \
  }
#define PYOPS_MASKED_STORE(V, Mask, name, whole, Element)                              \
  PYOPS_INTRINSIC void name(void* p, Mask mask, V lanes) {                             \
    constexpr int kCount = sizeof(V) / sizeof(Element);                                \
    if (mask == static_cast<Mask>(~0ull >> (64 - kCount))) return whole((V*)p, lanes); \
    emulation::store_enabled<Element>(p, mask, &lanes, kCount);                        \
  }
PYOPS_MASKED_LOAD(__m512, __mmask16, _mm512_maskz_loadu_ps, _mm512_loadu_ps, float)
PYOPS_MASKED_LOAD(__m512d, __mmask8, _mm512_maskz_loadu_pd, _mm512_loadu_pd, double)
PYOPS_MASKED_LOAD(__m512i, __mmask32, _mm512_maskz_loadu_epi16, _mm512_loadu_si512, uint16_t)
PYOPS_MASKED_LOAD(__m256i, __mmask16, _mm256_maskz_loadu_epi16, _mm256_loadu_si256, uint16_t)
PYOPS_MASKED_LOAD(__m128i, __mmask16, _mm_maskz_loadu_epi8, _mm_loadu_si128, uint8_t)
PYOPS_MASKED_STORE(__m512, __mmask16, _mm512_mask_storeu_ps, _mm512_storeu_ps, float)
PYOPS_MASKED_STORE(__m512d, __mmask8, _mm512_mask_storeu_pd, _mm512_storeu_pd, double)
PYOPS_MASKED_STORE(__m512i, __mmask32, _mm512_mask_storeu_epi16, _mm512_storeu_si512, uint16_t)
PYOPS_MASKED_STORE(__m256i, __mmask16, _mm256_mask_storeu_epi16, _mm256_storeu_si256, uint16_t)
#undef PYOPS_MASKED_LOAD
#undef PYOPS_MASKED_STORE

PYOPS_INTRINSIC void _mm512_mask_cvtepi32_storeu_epi8(void* p, __mmask16 mask, __m512i x) {
  const auto lanes = (__v16si)x;
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) static_cast<uint8_t*>(p)[i] = static_cast<uint8_t>(lanes[i]);
  }
}
PYOPS_INTRINSIC void _mm512_mask_cvtepi64_storeu_epi8(void* p, __mmask8 mask, __m512i x) {
  for (int i = 0; i < 8; ++i) {
    if (mask >> i & 1) static_cast<uint8_t*>(p)[i] = static_cast<uint8_t>(x[i]);
  }
}
PYOPS_INTRINSIC __m512 _mm512_i32gather_ps(__m512i index, const void* p, int scale) {
  const auto lanes = (__v16si)index;
  __m512 x;
  for (int i = 0; i < 16; ++i) {
    float element;
    std::memcpy(&element, static_cast<const char*>(p) + int64_t{lanes[i]} * scale, 4);
    x[i] = element;
  }
  return x;
}

}  // namespace pyops

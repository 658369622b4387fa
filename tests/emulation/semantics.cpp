// Each intrinsic of the kernels as a function of memory, so that the emulation and, where there is
// one, the processor can be asked the same.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#if defined(PYOPS_EMULATED)
#include "tiles_amx.cpp"
#endif

namespace pyops {
namespace {

__m512 ps(const void* p) { return _mm512_loadu_ps(static_cast<const float*>(p)); }
__m512d pd(const void* p) { return _mm512_loadu_pd(static_cast<const double*>(p)); }
__m512i si(const void* p) { return _mm512_loadu_si512(p); }
__m256i half(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
__m128i quarter(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }

template <class T>
void put(void* out, const T& x) {
  std::memcpy(out, &x, sizeof x);
}

}  // namespace

// clang-format off
#define RESULT(name, expression) \
  extern "C" void name([[maybe_unused]] const void* a, [[maybe_unused]] const void* b, \
                       [[maybe_unused]] const void* c, [[maybe_unused]] uint32_t mask, void* out) { \
    put(out, expression); \
  }
#define EFFECT(name, statement) \
  extern "C" void name([[maybe_unused]] const void* a, [[maybe_unused]] const void* b, \
                       [[maybe_unused]] const void* c, [[maybe_unused]] uint32_t mask, void* out) { \
    statement; \
  }
#define BINARY(name, in) RESULT(name, _mm512_##name(in(a), in(b)))
BINARY(add_ps, ps) BINARY(sub_ps, ps) BINARY(mul_ps, ps) BINARY(div_ps, ps) BINARY(max_ps, ps)
BINARY(min_ps, ps) BINARY(and_ps, ps) BINARY(andnot_ps, ps) BINARY(or_ps, ps)
BINARY(unpacklo_ps, ps) BINARY(unpackhi_ps, ps) BINARY(scalef_ps, ps)
BINARY(add_pd, pd) BINARY(sub_pd, pd) BINARY(mul_pd, pd) BINARY(div_pd, pd) BINARY(max_pd, pd)
BINARY(min_pd, pd) BINARY(and_pd, pd) BINARY(andnot_pd, pd) BINARY(or_pd, pd) BINARY(scalef_pd, pd)
BINARY(and_si512, si) BINARY(or_si512, si) BINARY(add_epi32, si) BINARY(mullo_epi32, si)
BINARY(max_epu32, si) BINARY(max_epu16, si) BINARY(unpacklo_epi16, si) BINARY(unpackhi_epi16, si)
BINARY(permutexvar_epi16, si) BINARY(cmpgt_epi16_mask, si) BINARY(cmpeq_epi16_mask, si)
BINARY(cmpge_epu16_mask, si) BINARY(cmpgt_epu16_mask, si) BINARY(cmpgt_epu32_mask, si)
BINARY(test_epi64_mask, si)
RESULT(testn_epi8_mask, _mm_testn_epi8_mask(quarter(a), quarter(b)))
RESULT(fmadd_ps, _mm512_fmadd_ps(ps(a), ps(b), ps(c)))
RESULT(fmsub_ps, _mm512_fmsub_ps(ps(a), ps(b), ps(c)))
RESULT(fmadd_pd, _mm512_fmadd_pd(pd(a), pd(b), pd(c)))
RESULT(slli_epi32, _mm512_slli_epi32(si(a), 16))
RESULT(srli_epi32, _mm512_srli_epi32(si(a), 16))
RESULT(set1_ps, _mm512_set1_ps(*static_cast<const float*>(a)))
RESULT(set1_pd, _mm512_set1_pd(*static_cast<const double*>(a)))
RESULT(set1_epi32, _mm512_set1_epi32(*static_cast<const int*>(a)))
RESULT(set1_epi16, _mm512_set1_epi16(*static_cast<const int16_t*>(a)))
RESULT(setr_epi32, _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15))
RESULT(set_epi16, _mm512_set_epi16(31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16,
                                   15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0))
RESULT(castsi512_si256, _mm512_castsi512_si256(si(a)))
RESULT(castps512_ps256, _mm512_castps512_ps256(ps(a)))
RESULT(castpd512_pd256, _mm512_castpd512_pd256(pd(a)))
RESULT(zextps128_ps512, _mm512_zextps128_ps512((__m128)quarter(a)))
RESULT(zextpd256_pd512, _mm512_zextpd256_pd512((__m256d)half(a)))
RESULT(extract_low, _mm512_extracti64x4_epi64(si(a), 0))
RESULT(extract_high, _mm512_extracti64x4_epi64(si(a), 1))
RESULT(extract_low_ps, _mm512_extractf32x8_ps(ps(a), 0))
RESULT(extract_high_ps, _mm512_extractf32x8_ps(ps(a), 1))
RESULT(extract_low_pd, _mm512_extractf64x4_pd(pd(a), 0))
RESULT(extract_high_pd, _mm512_extractf64x4_pd(pd(a), 1))
RESULT(maskz_loadu_ps, _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), a))
RESULT(maskz_loadu_pd, _mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), a))
RESULT(maskz_loadu_epi16, _mm512_maskz_loadu_epi16(mask, a))
RESULT(half_maskz_loadu_epi16, _mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), a))
RESULT(quarter_maskz_loadu_epi8, _mm_maskz_loadu_epi8(static_cast<__mmask16>(mask), a))
EFFECT(mask_storeu_ps, _mm512_mask_storeu_ps(out, static_cast<__mmask16>(mask), ps(a)))
EFFECT(mask_storeu_pd, _mm512_mask_storeu_pd(out, static_cast<__mmask8>(mask), pd(a)))
EFFECT(mask_storeu_epi16, _mm512_mask_storeu_epi16(out, mask, si(a)))
EFFECT(half_mask_storeu_epi16,
       _mm256_mask_storeu_epi16(out, static_cast<__mmask16>(mask), half(a)))
EFFECT(mask_cvtepi32_storeu_epi8,
       _mm512_mask_cvtepi32_storeu_epi8(out, static_cast<__mmask16>(mask), si(a)))
EFFECT(mask_cvtepi64_storeu_epi8,
       _mm512_mask_cvtepi64_storeu_epi8(out, static_cast<__mmask8>(mask), si(a)))
RESULT(i32gather_ps, _mm512_i32gather_ps(si(b), static_cast<const float*>(a), 4))
RESULT(mask_mov_ps, _mm512_mask_mov_ps(ps(a), static_cast<__mmask16>(mask), ps(b)))
RESULT(mask_mov_pd, _mm512_mask_mov_pd(pd(a), static_cast<__mmask8>(mask), pd(b)))
RESULT(mask_mov_epi32, _mm512_mask_mov_epi32(si(a), static_cast<__mmask16>(mask), si(b)))
RESULT(maskz_mov_ps, _mm512_maskz_mov_ps(static_cast<__mmask16>(mask), ps(a)))
RESULT(maskz_mov_pd, _mm512_maskz_mov_pd(static_cast<__mmask8>(mask), pd(a)))
RESULT(maskz_mov_epi16, _mm512_maskz_mov_epi16(mask, si(a)))
RESULT(mask_max_ps, _mm512_mask_max_ps(ps(a), static_cast<__mmask16>(mask), ps(b), ps(c)))
RESULT(maskz_expand_ps, _mm512_maskz_expand_ps(static_cast<__mmask16>(mask), ps(a)))
RESULT(less_ps, _mm512_cmp_ps_mask(ps(a), ps(b), _CMP_LT_OQ))
RESULT(greater_ps, _mm512_cmp_ps_mask(ps(a), ps(b), _CMP_GT_OQ))
RESULT(not_less_equal_ps, _mm512_cmp_ps_mask(ps(a), ps(b), _CMP_NLE_UQ))
RESULT(unordered_ps, _mm512_cmp_ps_mask(ps(a), ps(b), _CMP_UNORD_Q))
RESULT(less_pd, _mm512_cmp_pd_mask(pd(a), pd(b), _CMP_LT_OQ))
RESULT(greater_pd, _mm512_cmp_pd_mask(pd(a), pd(b), _CMP_GT_OQ))
RESULT(not_less_equal_pd, _mm512_cmp_pd_mask(pd(a), pd(b), _CMP_NLE_UQ))
RESULT(unordered_pd, _mm512_cmp_pd_mask(pd(a), pd(b), _CMP_UNORD_Q))
RESULT(shuffle_ps, _mm512_shuffle_ps(ps(a), ps(b), 0x4e))
RESULT(shuffle_f32x4, _mm512_shuffle_f32x4(ps(a), ps(b), 0x8d))
RESULT(pick_smaller_ps, ps(a) < ps(b) ? ps(a) : ps(b))
RESULT(pick_smaller_pd, pd(a) < pd(b) ? pd(a) : pd(b))
RESULT(permutex2var_ps, _mm512_permutex2var_ps(ps(a), si(b), ps(c)))
RESULT(permutex2var_epi16, _mm512_permutex2var_epi16(si(a), si(b), si(c)))
RESULT(mask_permutexvar_epi16, _mm512_mask_permutexvar_epi16(si(a), mask, si(b), si(c)))
RESULT(cvtepu16_epi32, _mm512_cvtepu16_epi32(half(a)))
RESULT(cvtepu8_epi32, _mm512_cvtepu8_epi32(quarter(a)))
RESULT(cvtepu8_epi64, _mm512_cvtepu8_epi64(quarter(a)))
RESULT(cvtepi32_epi16, _mm512_cvtepi32_epi16(si(a)))
RESULT(cvtph_ps, _mm512_cvtph_ps(half(a)))
RESULT(cvtps_ph, _mm512_cvtps_ph(ps(a), _MM_FROUND_TO_NEAREST_INT))
RESULT(cvtneps_pbh, (__m256i)_mm512_cvtneps_pbh(ps(a)))
RESULT(cvtne2ps_pbh, (__m512i)_mm512_cvtne2ps_pbh(ps(a), ps(b)))
RESULT(dpbf16_ps, _mm512_dpbf16_ps(ps(a), (__m512bh)si(b), (__m512bh)si(c)))
RESULT(roundscale_ps, _mm512_roundscale_ps(ps(a), _MM_FROUND_TO_NEAREST_INT))
RESULT(roundscale_pd, _mm512_roundscale_pd(pd(a), _MM_FROUND_TO_NEAREST_INT))
RESULT(reduce_ps, _mm512_reduce_ps(ps(a), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC))
RESULT(reduce_add_ps, _mm512_reduce_add_ps(ps(a)))
RESULT(reduce_add_pd, _mm512_reduce_add_pd(pd(a)))
RESULT(reduce_max_ps, _mm512_reduce_max_ps(ps(a)))
RESULT(reduce_max_pd, _mm512_reduce_max_pd(pd(a)))
RESULT(reduce_max_epu32, _mm512_reduce_max_epu32(si(a)))
    // clang-format on

#if defined(__AMX_TILE__)
    // sums += left · right for tiles of that configuration; each lies there row by row of 64 bytes.
    extern "C" void multiply_tiles(const void* config, const void* left, const void* right,
                                   void* sums) {
  _tile_loadconfig(config);
  _tile_loadd(0, sums, 64);
  _tile_loadd(4, left, 64);
  _tile_loadd(6, right, 64);
  _tile_dpbf16ps(0, 4, 6);
  _tile_stored(0, sums, 64);
  _tile_release();
}

// What a processor refuses.
extern "C" void misuse(int how, const void* config) {
  alignas(64) static char memory[1024];
  if (how == 0) return _tile_zero(0);
  _tile_loadconfig(config);
  if (how == 1) return;
  if (how == 2) _tile_dpbf16ps(0, 0, 1);
  if (how == 3) _tile_dpbf16ps(0, 1, 2);
  if (how == 4) _tile_loadd(5, memory, 64);
  if (how == 5) _mm512_store_si512(memory + 32, _mm512_setzero_si512());
  _tile_release();
  _tile_stored(0, memory, 64);
}
#endif

}  // namespace pyops

// Numbers of 16 bits on their way into tiles (multiply_tiles.h), as they are: what multiplies them
// does with them what native's does.
#pragma once

#include "gemm/multiply_tiles.h"
#include "gemm/operands.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// The first n of 32 numbers of 16 bits, for any n.
inline __mmask32 first_words(int64_t n) {
  return n >= 32 ? ~__mmask32{0} : (__mmask32{1} << std::max<int64_t>(n, 0)) - 1;
}

// The first n of 16 lanes, for any n.
inline __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>(first_words(n)); }

// How _mm512_permutex2var_epi16 pairs two vectors: a[begin], b[begin], a[begin + 1], …
inline __m512i interleaving(int begin) {
  alignas(64) uint16_t order[32];
  for (int i = 0; i < 32; ++i) order[i] = static_cast<uint16_t>(begin + i / 2 + i % 2 * 32);
  return _mm512_load_si512(order);
}

// 16×16 dwords to a tile whose rows are `apart`, transposed if kTurned.
template <bool kTurned>
void store_tile(__m512i (&rows)[kTileRows], uint16_t* tile, int64_t apart = 2 * kTilePairs) {
  Vec<float> block[kTileRows];
  for (int r = 0; r < kTileRows; ++r) block[r].v = _mm512_castsi512_ps(rows[r]);
  if (kTurned) transpose(block);
  for (int r = 0; r < kTileRows; ++r) {
    block[r].store(reinterpret_cast<float*>(tile + r * apart));
  }
}

// A tile of load(r), 32 numbers of its row r: of A as they are, of B in pairs.
template <bool kIsA, class Load>
void pack_tile_rows(const Load& load, uint16_t* tile, int64_t apart = 2 * kTilePairs) {
  __m512i rows[kTileRows];
  for (int r = 0; r < kTileRows; ++r) rows[r] = load(r);
  store_tile<!kIsA>(rows, tile, apart);
}
// Two tiles of load(p), the numbers of 32 columns at depth p; of the second only if it is not null.
template <bool kIsA, class Load>
void pack_tile_columns(const Load& load, uint16_t* first, uint16_t* second,
                       int64_t apart = 2 * kTilePairs) {
  const __m512i low = interleaving(0), high = interleaving(16);
  __m512i left[kTilePairs], right[kTilePairs];
  for (int pair = 0; pair < kTilePairs; ++pair) {
    const __m512i even = load(2 * pair), odd = load(2 * pair + 1);
    left[pair] = _mm512_permutex2var_epi16(even, low, odd);
    right[pair] = _mm512_permutex2var_epi16(even, high, odd);
  }
  store_tile<kIsA>(left, first, apart);
  if (second != nullptr) store_tile<kIsA>(right, second, apart);
}

// In place.
inline void transpose_tile(uint16_t* tile) {
  __m512i rows[kTileRows];
  for (int r = 0; r < kTileRows; ++r) rows[r] = _mm512_load_si512(tile + r * 32);
  store_tile<true>(rows, tile);
}

// Numbers from data[at] on, zero beyond `lanes` and where the mask is not positive, as
// where_positive has it: a NaN lets the gradient pass.
template <bool kMasked>
__m512i load_words(const BFloat16* data, const BFloat16* mask, int64_t at, __mmask32 lanes) {
  const __m512i x = _mm512_maskz_loadu_epi16(lanes, data + at);
  if constexpr (!kMasked) return x;
  const __m512i y = _mm512_maskz_loadu_epi16(lanes, mask + at);
  const __mmask32 positive =
      _mm512_cmpgt_epi16_mask(y, _mm512_setzero_si512()) |
      _mm512_cmpgt_epu16_mask(y, _mm512_set1_epi16(static_cast<int16_t>(0xff80)));
  return _mm512_maskz_mov_epi16(positive, x);
}

// Whether it is, or derives from, a matrix of bfloat16 in memory.
template <class Source>
inline constexpr bool kIsWords = std::is_base_of_v<StridedOperand<BFloat16, false>, Source> ||
                                 std::is_base_of_v<StridedOperand<BFloat16, true>, Source>;

// Where the tiles of 32 rows or columns lie, distances in numbers: a tile's next row, the second
// tile, and the two of the depth's next 32 numbers.
struct TileLayout {
  int64_t row = 2 * kTilePairs, half = kTileElements, step = 2 * kTileElements;
};

// Numbers [p0, p0 + depth) of rows i0 to i0 + 32, of which the second half may not be wanted; zeros
// beyond the extent and up to whole steps.
template <bool kIsA, bool kMasked>
void pack_word_rows(const StridedOperand<BFloat16, kMasked>& x, int64_t i0, int64_t p0,
                    int64_t depth, const TileLayout& to, int halves, uint16_t* panel) {
  for (int64_t p = 0; p < depth; p += 32, panel += to.step) {
    for (int half = 0; half < halves; ++half) {
      const int64_t i = i0 + half * kTileRows, some = x.extent - i;
      const __mmask32 lanes = first_words(depth - p);
      const auto row = [&](int r) {
        const int64_t at = (i + r) * x.i_stride + p0 + p;
        if (r + 32 < some) {
          prefetch_to_read(x.data + at + 32 * x.i_stride);
          if (kMasked) prefetch_to_read(x.mask + at + 32 * x.i_stride);
        }
        return r < some ? load_words<kMasked>(x.data, x.mask, at, lanes) : _mm512_setzero_si512();
      };
      pack_tile_rows<kIsA>(row, panel + half * to.half, to.row);
    }
  }
}

// Of load(p), 32 of them at depth p.
template <bool kIsA, class Load>
void pack_word_columns(const Load& load, int64_t depth, const TileLayout& to, int halves,
                       uint16_t* panel) {
  for (int64_t p = 0; p < depth; p += 32, panel += to.step) {
    const auto row = [&](int q) { return p + q < depth ? load(p + q) : _mm512_setzero_si512(); };
    pack_tile_columns<kIsA>(row, panel, halves > 1 ? panel + to.half : nullptr, to.row);
  }
}

// Whether rows or columns of a matrix lie in one piece.
template <bool kMasked>
bool packs_as_words(const StridedOperand<BFloat16, kMasked>& x) {
  return x.p_stride == 1 || x.i_stride == 1;
}

template <bool kIsA, bool kMasked>
void pack_words(const StridedOperand<BFloat16, kMasked>& x, int64_t i0, int64_t p0, int64_t depth,
                const TileLayout& to, int halves, uint16_t* panel) {
  if (x.p_stride == 1) return pack_word_rows<kIsA>(x, i0, p0, depth, to, halves, panel);
  const __mmask32 lanes = first_words(x.extent - i0);
  const auto load = [&](int64_t p) {
    constexpr int64_t kAhead = 32;
    const int64_t at = i0 + (p0 + p) * x.p_stride;
    if (p + kAhead < depth) {
      prefetch_to_read(x.data + at + kAhead * x.p_stride);
      if (kMasked) prefetch_to_read(x.mask + at + kAhead * x.p_stride);
    }
    return load_words<kMasked>(x.data, x.mask, at, lanes);
  };
  pack_word_columns<kIsA>(load, depth, to, halves, panel);
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE

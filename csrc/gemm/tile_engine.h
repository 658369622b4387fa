// Tiles of C by products of bfloat16 (multiply_tiles.h).
//
// A float32 is the exact sum of three bfloat16 (x = x1 + x2 + x3, 8 bits each). Keeping the
// products above 2^-24 leaves six of nine: float32 accuracy on a unit 16 times as fast as FMA
// (Henry, Tang & Heinecke 2019, arXiv:1904.06376); two parts and three products give 2^-16.
// bfloat16 has one part, float16 two. Without that unit there is bfloat16 alone.
//
// A panel is 32 rows (of A) or columns (of B); each depth step of 32 holds, part by part, two
// tiles: A's as rows of 32 numbers along the depth, B's as rows of pairs along the depth (VNNI).
#pragma once

#include <cstring>

#include "core/precision.h"
#include "gemm/word_tiles.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

template <class Source>
constexpr int bf16_parts_of(Precision precision) {
  if (std::is_same_v<typename Source::Element, BFloat16>) return 1;
  if (std::is_same_v<typename Source::Element, Float16>) return 2;
  return precision == Precision::kHighest ? 3 : precision == Precision::kHigh ? 2 : 1;
}

template <class A, class B>
constexpr int bf16_parts(Precision precision) {
  return std::max(bf16_parts_of<A>(precision), bf16_parts_of<B>(precision));
}

// Splitting costs the same for every number whatever its use: a product that uses its numbers
// seldom is faster in vector registers. Break-even against AVX-512 on Sapphire Rapids, November
// 2026.
inline bool tiles_pay(int64_t m, int64_t n, int64_t k, int parts) {
  const int64_t narrow = parts == 1 ? 8 : parts == 2 ? 32 : 96;
  return m >= narrow && n >= narrow && k >= 16;
}

// Largest magnitude met, as float bits: what tells whether a split is faithful.
struct Magnitude {
  __m512i bits = _mm512_setzero_si512();

  void see(__m512 x) {
    const __m512i magnitude =
        _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
    bits = _mm512_max_epu32(bits, magnitude);
  }
  // Inf - Inf would make NaN of a split Inf, and products flush denormals: a panel must stay clear
  // of both ends. Above 2^-50 nothing that matters in float32 is lost, products of parts included.
  bool regular() const {
    const unsigned largest = _mm512_reduce_max_epu32(bits);
    return largest == 0 || (largest >= float_bits(0x1p-50f) && largest < float_bits(0x1p126f));
  }
  bool finite() const { return _mm512_reduce_max_epu32(bits) < float_bits(0x1p126f); }
};

// Sixteen dwords of two bfloat16: the parts of (low[i], high[i]), one vector a part.
template <int kParts>
void split_pairs(__m512 low, __m512 high, uint16_t* out, int64_t part_stride) {
  for (int part = 0; part < kParts; ++part) {
    const __m512i pairs = interleave_halves((__m512i)_mm512_cvtne2ps_pbh(high, low));
    _mm512_store_si512(out + part * part_stride, pairs);
    if (part + 1 == kParts) break;
    low = _mm512_sub_ps(low, _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)));
    const __m512i high_part = _mm512_and_si512(pairs, _mm512_set1_epi32(~0xffff));
    high = _mm512_sub_ps(high, _mm512_castsi512_ps(high_part));
  }
}

// The parts of 32 consecutive numbers, one vector of 32 a part.
template <int kParts>
void split_row(__m512 low, __m512 high, uint16_t* out, int64_t part_stride) {
  for (int part = 0; part < kParts; ++part) {
    const __m512i row = (__m512i)_mm512_cvtne2ps_pbh(high, low);
    _mm512_store_si512(out + part * part_stride, row);
    if (part + 1 == kParts) break;
    const auto widen = [](__m256i h) {
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
    };
    low = _mm512_sub_ps(low, widen(_mm512_castsi512_si256(row)));
    high = _mm512_sub_ps(high, widen(_mm512_extracti64x4_epi64(row, 1)));
  }
}

template <int kParts>
class TileEngine {
 public:
  using Acc = float;
  using Element = uint16_t;
  static constexpr int kRows = 32, kCols = 32;
  static constexpr int64_t kDepthStep = 32;
  // A B-panel fills a 48 KiB L1 whatever the parts.
  static constexpr int64_t kMaxDepth = 768 / kParts;

  static constexpr int64_t kPartElements = PackedTiles<kParts>::part();
  static constexpr int64_t kStepElements = kParts * kPartElements;

  TileEngine() { configure_tiles(); }
  ~TileEngine() { release_tiles(); }

  static constexpr int64_t panel_elements(int, int64_t depth) {
    return ceil_div(depth, kDepthStep) * kStepElements;
  }

  // Both return whether the parts represent the panel faithfully.
  template <class Source>
  bool pack_a(const Source& a, int64_t i0, int64_t p0, int64_t depth, uint16_t* panel) {
    return pack<true>(a, i0, p0, depth, panel);
  }
  template <class Source>
  bool pack_b(const Source& b, int64_t j0, int64_t p0, int64_t depth, uint16_t* panel) {
    return pack<false>(b, j0, p0, depth, panel);
  }

  void multiply(int rows, int cols, int64_t depth, const uint16_t* a, const uint16_t* b, float* c,
                int64_t ldc, bool add) {
    multiply(rows, cols, depth, PackedTiles<kParts>{a}, PackedTiles<kParts>{b}, c, ldc, add);
  }

  template <class ATiles, class BTiles>
    requires std::is_class_v<ATiles> && std::is_class_v<BTiles>
  void multiply(int rows, int cols, int64_t depth, const ATiles& a, const BTiles& b, float* c,
                int64_t ldc, bool add) {
    const int64_t steps = ceil_div(depth, kDepthStep), ld = add ? kCols : ldc;
    const TileSums out{add ? sums_ : c, ld, kTileRows, kTileRows * ld};
    multiply_tiles<kParts>(steps, rows, cols, a, b, out, false);
    if (add) add_sums(rows, cols > kTileRows ? 32 : 16, c, ldc);
  }

 private:
  template <bool kIsA, class Source>
  bool pack(const Source& source, int64_t i0, int64_t p0, int64_t depth, uint16_t* panel) {
    if constexpr (kParts == 1 && kIsWords<Source>) {
      if (packs_as_words(source)) {
        pack_words<kIsA>(source, i0, p0, depth, {}, 2, panel);
        return true;
      }
    }
    if constexpr (kParts == 1 && requires { source.words(i0, p0); }) {
      if (source.rows_contiguous()) {
        for (int64_t p = 0; p < depth; p += kDepthStep) {
          for (int half = 0; half < 2; ++half, panel += kTileElements) {
            const auto row = [&](int r) {
              return source.row_words(i0 + half * kTileRows + r, p0 + p);
            };
            pack_tile_rows<kIsA>(row, panel);
          }
        }
      } else {
        const auto load = [&](int64_t p) { return source.words(i0, p0 + p); };
        pack_word_columns<kIsA>(load, depth, {}, 2, panel);
      }
      return true;
    }
    Magnitude magnitude;
    if constexpr (RowReadable<Source>) {
      if (source.rows_contiguous()) {
        pack_rows<kIsA>(source, i0, p0, depth, panel, magnitude);
        return faithful<Source>(magnitude);
      }
    }
    for (int64_t p = 0; p < depth; p += kSlice) {
      const int64_t slice = std::min(kSlice, depth - p);
      source.template pack<32>(i0, p0 + p, slice, floats_);
      pack_floats<kIsA>(slice, panel + p / kDepthStep * kStepElements, magnitude);
    }
    return faithful<Source>(magnitude);
  }

  // From floats_[p * 32 + i], padded with zeros to whole steps.
  template <bool kIsA>
  void pack_floats(int64_t depth, uint16_t* panel, Magnitude& magnitude) {
    const int64_t padded = ceil_div(depth, kDepthStep) * kDepthStep;
    std::memset(floats_ + depth * 32, 0, sizeof(float) * 32 * (padded - depth));
    for (int64_t p = 0; p < padded; p += kDepthStep, panel += kStepElements) {
      for (int half = 0; half < 2; ++half) {
        uint16_t* tile = panel + half * kTileElements;
        for (int pair = 0; pair < kTilePairs; ++pair) {
          const float* row = floats_ + (p + 2 * pair) * 32 + half * 16;
          const __m512 low = _mm512_loadu_ps(row), high = _mm512_loadu_ps(row + 32);
          magnitude.see(low);
          magnitude.see(high);
          split_pairs<kParts>(low, high, tile + pair * 32, kPartElements);
        }
        if (kIsA) transpose_parts(tile);
      }
    }
  }

  // A source whose rows are contiguous along the depth is split without the float panel between.
  template <bool kIsA, class Source>
  static void pack_rows(const Source& source, int64_t i0, int64_t p0, int64_t depth,
                        uint16_t* panel, Magnitude& magnitude) {
    for (int64_t p = 0; p < depth; p += kDepthStep, panel += kStepElements) {
      const int low_count = static_cast<int>(std::min<int64_t>(16, depth - p));
      const int high_count = static_cast<int>(std::clamp<int64_t>(depth - p - 16, 0, 16));
      for (int half = 0; half < 2; ++half) {
        uint16_t* tile = panel + half * kTileElements;
        for (int r = 0; r < kTileRows; ++r) {
          const int64_t i = i0 + half * 16 + r;
          const __m512 low = source.load_row(i, p0 + p, low_count).v;
          const __m512 high = source.load_row(i, p0 + p + 16, high_count).v;
          if constexpr (requires { source.prefetch_row(i, p0); }) {
            source.prefetch_row(i + 32, p0 + p);
            source.prefetch_row(i + 32, p0 + p + 16);
          }
          magnitude.see(low);
          magnitude.see(high);
          split_row<kParts>(low, high, tile + r * 32, kPartElements);
        }
        if (!kIsA) transpose_parts(tile);
      }
    }
  }

  static void transpose_parts(uint16_t* tile) {
    for (int part = 0; part < kParts; ++part) transpose_tile(tile + part * kPartElements);
  }

  template <class Source>
  static bool faithful(const Magnitude& magnitude) {
    // bfloat16 operands are not split: the unit does with them what native's does.
    if (std::is_same_v<typename Source::Element, BFloat16> && kParts == 1) return true;
    return magnitude.regular();
  }

  void add_sums(int rows, int cols, float* c, int64_t ldc) const {
    for (int r = 0; r < rows; ++r) {
      for (int q = 0; q < cols; q += 16) {
        const auto sum = Vec<float>::load(sums_ + r * kCols + q);
        (sum + Vec<float>::load(c + r * ldc + q)).store(c + r * ldc + q);
      }
    }
  }

  static constexpr int64_t kSlice = 128;
  alignas(64) float floats_[kSlice * 32];
  alignas(64) float sums_[kRows * kCols];
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE

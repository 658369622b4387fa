// bfloat16 by tiles (gemm/multiply_tiles.h): what forward and backward share.
//
// A tile is 16 rows of 32 numbers. Left tiles run along the summed dimension within a row, right
// tiles hold pairs along it (VNNI); four ways of packing make both from rows or from columns.
#pragma once

#include "attention/attention_tile_simd.h"
#include "gemm/tile_engine.h"
#include "gemm/word_tiles.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

inline constexpr int64_t kTileDepth = 32;

// The thread's state while tiles are in use. Results below 2^-126 become zero: a weight that small
// counts for nothing, and computing it would cost an assist of 150 cycles.
class TileSession {
 public:
  TileSession() : control_(_mm_getcsr()) {
    configure_tiles();
    _mm_setcsr(control_ | _MM_FLUSH_ZERO_ON);
  }
  ~TileSession() {
    _mm_setcsr(control_);
    release_tiles();
  }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;

 private:
  unsigned control_;
};

// A packed operand: per 16 of its unsummed dimension, `stride` elements of tiles along the other.
struct Tiles {
  const uint16_t* data;
  int64_t stride;

  Tiles from(int64_t tile) const { return {data + tile * stride, stride}; }

  // As multiply_tiles() reads two of them.
  const uint16_t* at(int64_t step) const { return data + step * kTileElements; }
  int64_t half() const { return stride; }
  static constexpr int64_t part() { return 0; }
  static constexpr int64_t row() { return kTileDepth; }
  static constexpr int64_t pair() { return 2; }
  static constexpr int pairs(int64_t) { return kTilePairs; }
};

// Rows of a matrix in memory, zero beyond its ends.
struct Bf16Rows {
  const uint16_t* data;
  int64_t stride, rows, columns;

  __m512i load(int64_t row, int64_t column) const {
    const __mmask32 lanes = first_words(row < rows ? columns - column : 0);
    return _mm512_maskz_loadu_epi16(lanes, data + row * stride + column);
  }
};

inline Bf16Rows bf16_rows(const ConstRows& t, int64_t b, int64_t h, int64_t row, int64_t rows,
                          int64_t columns) {
  return {row_of<uint16_t>(t, b, h, row), t.row, rows, columns};
}

// The numbers of tiles of 16 rows, an even number of them, summed along columns in `steps` of 32.
template <bool kRight>
void pack_rows(const Bf16Rows& from, int64_t steps, uint16_t* to) {
  for (int64_t i = 0; i < 2 * ceil_div(from.rows, 2 * kTileRows); ++i) {
    for (int64_t step = 0; step < steps; ++step, to += kTileElements) {
      const auto row = [&](int r) { return from.load(i * kTileRows + r, step * kTileDepth); };
      pack_tile_rows<!kRight>(row, to);
    }
  }
}

// The numbers of `tiles` tiles of 16 columns, summed along rows: as many steps of 32 as there are,
// with room for `max_steps`.
template <bool kRight>
void pack_columns(const Bf16Rows& from, int64_t tiles, int64_t max_steps, uint16_t* to) {
  for (int64_t i = 0; i < tiles; i += 2) {
    for (int64_t step = 0; step < ceil_div(from.rows, kTileDepth); ++step) {
      uint16_t* first = to + (i * max_steps + step) * kTileElements;
      uint16_t* second = i + 1 < tiles ? first + max_steps * kTileElements : nullptr;
      const auto row = [&](int r) { return from.load(step * kTileDepth + r, i * kTileRows); };
      pack_tile_columns<!kRight>(row, first, second);
    }
  }
}

// A tile of c holds 16×16 numbers in one piece: rows farther apart would be stores that later loads
// of the same address modulo 4096 wait for.
inline constexpr int64_t kSumElements = 256;

// c = or += a·b for m×n tiles, `steps` of 32 deep; a row of c has `columns` tiles.
inline void multiply(int64_t m, int64_t n, int64_t steps, const Tiles& a, const Tiles& b, float* c,
                     int64_t columns, bool add) {
  for (int64_t j = 0; j < n; j += 2) {
    for (int64_t i = 0; i < m; i += 2) {
      float* at = c + (i * columns + j) * kSumElements;
      const TileSums sums{at, kTileRows, kSumElements, columns * kSumElements};
      const auto numbers = [](bool both) { return both ? 2 * kTileRows : kTileRows; };
      multiply_tiles<1>(steps, numbers(i + 1 < m), numbers(j + 1 < n), a.from(i), b.from(j), sums,
                        add);
    }
  }
}

// Where columns from 16·j on of row i of such a c are.
inline float* sums_at(float* c, int64_t columns, int64_t i, int64_t j) {
  return c + (i / kTileRows * columns + j) * kSumElements + i % kTileRows * kTileRows;
}

// 2^x within 2^-13, exact at integers: what a weight rounded to bfloat16 asks for.
inline __m512 exp2_bf16(__m512 x) {
  constexpr int kDown = 9;  // round down, no exceptions
  const __m512 fraction = _mm512_reduce_ps(x, kDown);
  __m512 p = _mm512_set1_ps(0.07706756f);
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.22764443f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.69511691f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, x);  // takes the integer below x
}

// How scores become exponents of two. Plain scores are used as they left the tiles; those with a
// mask, or with a scale that orders them backwards, are finished first (TileMask).
struct ScoreUnits {
  bool finished;
  float scale;   // of what is stored: a maximum in score units times this is row_max
  float factor;  // score units to exponents of two

  explicit ScoreUnits(const AttentionShape& p, const AttentionMask& mask)
      : finished(mask.kind != MaskKind::kNone || !(p.scale > 1e-20 && p.scale < 1e20)),
        scale(finished ? 1.0f : static_cast<float>(p.scale)),
        factor(static_cast<float>(finished ? kLog2OfE : p.scale * kLog2OfE)) {}

  // Whether factor·score - factor·max in one rounding is as good as factor·(score - max).
  static bool shift_is_small(float shift) { return std::fabs(shift) < 1024; }
};

// 32 numbers of a row, rounded.
inline void store_pair(__m512 low, __m512 high, uint16_t* to) {
  _mm512_store_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

inline bool finite(const Bf16Rows& x) {
  const __m512i exponent = _mm512_set1_epi16(0x7f80);
  __mmask32 found = 0;
  for (int64_t row = 0; row < x.rows; ++row) {
    for (int64_t column = 0; column < x.columns; column += 32) {
      const __m512i bits = _mm512_and_si512(x.load(row, column), exponent);
      found |= _mm512_cmpeq_epi16_mask(bits, exponent);
    }
  }
  return found == 0;
}

// Scores times scale plus mask, -inf where a key is hidden, for a row of score tiles. Masks whose
// keys are neighbours are read where they are, truth values 64 at a time.
class TileMask {
 public:
  TileMask(const AttentionMask& mask, double scale)
      : mask_(mask), rows_(mask), scale_(static_cast<float>(scale)) {}

  // `scores` is the row in the first of its tiles, `width` whole tiles; `seen` of `keys` count.
  void finish(float* scores, int64_t b, int64_t h, int64_t l, int64_t s0, int64_t keys,
              int64_t seen, int64_t width) {
    const int64_t at = b * mask_.b + h * mask_.h + l * mask_.row + s0;
    if (mask_.kind == MaskKind::kNone) {
      add(scores, seen, width, [](int64_t) { return _mm512_setzero_ps(); });
    } else if (mask_.key != 1) {
      const float* row = rows_.row(b, h, l, s0, keys);
      add(scores, seen, width, [&](int64_t j) { return load(row, j, keys); });
    } else if (mask_.kind == MaskKind::kBool) {
      const auto* row = static_cast<const uint8_t*>(mask_.data) + at;
      const __m512 hidden = _mm512_set1_ps(-INFINITY);
      add(scores, seen, width, [&](int64_t j) {
        const __m128i bytes = _mm_maskz_loadu_epi8(first_lanes(keys - j), row + j);
        return _mm512_maskz_mov_ps(_mm_testn_epi8_mask(bytes, bytes), hidden);
      });
    } else if (mask_.dtype == Dtype::kFloat32) {
      const auto* row = static_cast<const float*>(mask_.data) + at;
      add(scores, seen, width, [&](int64_t j) { return load(row, j, keys); });
    } else {
      const auto* row = static_cast<const uint16_t*>(mask_.data) + at;
      add(scores, seen, width, [&](int64_t j) {
        const __m256i bits = _mm256_maskz_loadu_epi16(first_lanes(keys - j), row + j);
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
      });
    }
  }

 private:
  static __m512 load(const float* row, int64_t j, int64_t keys) {
    return _mm512_maskz_loadu_ps(first_lanes(keys - j), row + j);
  }
  template <class Mask>
  void add(float* scores, int64_t seen, int64_t width, Mask&& mask) const {
    const __m512 scale = _mm512_set1_ps(scale_);
    for (int64_t j = 0; j < width; j += kTileRows, scores += kSumElements) {
      const __m512 score = _mm512_fmadd_ps(_mm512_load_ps(scores), scale, mask(j));
      const __m512 hidden = _mm512_set1_ps(-INFINITY);
      _mm512_store_ps(scores, _mm512_mask_mov_ps(hidden, first_lanes(seen - j), score));
    }
  }

  const AttentionMask& mask_;
  MaskRows<BFloat16> rows_;
  const float scale_;
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE

// Rows of bfloat16 for row_tiles.h: those of a matrix where they lie, or copies where a pair of
// numbers cannot be read there, because they are masked, not side by side, or one is left over.
#pragma once

#include "core/scratch.h"
#include "gemm/row_tiles.h"
#include "gemm/word_tiles.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

struct WordRows {
  const BFloat16* data;
  int64_t stride;
};

template <bool kMasked>
class RowSource {
 public:
  using Matrix = StridedOperand<BFloat16, kMasked>;

  static bool in_place(const Matrix& a, int64_t k) {
    return !kMasked && a.p_stride == 1 && k % 2 == 0;
  }
  // Columns are turned into rows once; what is only masked, or odd, is copied by groups of rows
  // as these are needed, while they are near.
  static bool copied_at_once(const Matrix& a) { return a.p_stride != 1; }

  RowSource(const Matrix& a, int64_t k)
      : a_(a),
        in_place_(in_place(a, k)),
        stride_(copy_stride(k)),
        copy_(copied_at_once(a) ? round_up(a.extent, 32) * stride_ : 0) {
    if (!copied_at_once(a)) return;
    constexpr int64_t kSlice = 256;
    const int64_t slices = ceil_div(k, kSlice);
    parallel_for(0, ceil_div(a.extent, 32) * slices, 4, [&](int64_t t0, int64_t t1) {
      for (int64_t t = t0; t < t1; ++t) {
        const int64_t i = t / slices * 32, p = t % slices * kSlice;
        copy(i, 2, p, std::min(kSlice, k - p), copy_.get() + i * stride_ + p, stride_);
      }
    });
  }

  // Numbers that a group of rows, some of them `depth` numbers long, may need room for.
  int64_t room(int64_t depth) const {
    return in_place_ || copied_at_once(a_) ? 0 : 2 * 32 * copy_stride(depth);
  }

  // Rows from i on, `some` of a group, and if these are fewer than a tile's, those before it:
  // numbers [p, p + depth).
  WordRows rows(int64_t i, int some, int64_t p, int64_t depth, BFloat16* room) const {
    if (in_place_) return {a_.data + i * a_.i_stride + p, a_.i_stride};
    if (copied_at_once(a_)) return {copy_.get() + i * stride_ + p, stride_};
    const int64_t stride = copy_stride(depth), before = std::max(0, kLeastRows - some);
    for (int64_t r = 0; r < before + some; r += 32) {
      const int halves = before + some - r > kTileRows ? 2 : 1;
      copy(i - before + r, halves, p, depth, room + r * stride, stride);
    }
    return {room + before * stride, stride};
  }

  // Whether the next rows are to be asked for.
  bool lie_in_memory() const { return room(1) == 0; }

 private:
  static int64_t copy_stride(int64_t depth) {
    return round_up(depth, 32) + 32;  // no power of two
  }

  void copy(int64_t i, int halves, int64_t p, int64_t depth, BFloat16* to, int64_t stride) const {
    const TileLayout rows{.row = stride, .half = kTileRows * stride, .step = 32};
    pack_words<true>(a_, i, p, depth, rows, halves, reinterpret_cast<uint16_t*>(to));
  }

  const Matrix a_;
  const bool in_place_;
  const int64_t stride_;
  const Scratch<BFloat16> copy_;
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE

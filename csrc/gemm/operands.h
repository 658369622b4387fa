// Operands of a GEMM as sources: anything that packs panels of itself on demand, so that strided,
// transposed, masked and im2col operands need no copy of their own.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>

#include "core/parallel.h"
#include "core/simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t n, int64_t multiple) { return ceil_div(n, multiple) * multiple; }

// An extent in `count` parts of whole units, which differ by one unit at most: with all but the
// last as long as the longest, threads would wait for each other.
struct Cuts {
  int64_t extent, unit, count;

  int64_t units() const { return ceil_div(extent, unit); }
  int64_t begin(int64_t part) const { return std::min(extent, units() * part / count * unit); }
  int64_t end(int64_t part) const { return begin(part + 1); }
  int64_t longest() const { return ceil_div(units(), count) * unit; }
  // As many parts for every thread, if there are units for so many.
  void share_among(int64_t threads) { count = std::min(round_up(count, threads), units()); }
};

// A source that can be read without packing: see StridedOperand::load_row.
template <class Source>
concept RowReadable = requires(const Source& s) { s.load_row(int64_t{}, int64_t{}, 0); };

// How many products one running sum may have: where a source asks for shorter ones, as the sums of
// windows do beside native's.
template <class Source>
constexpr int64_t stretch_of() {
  if constexpr (requires { Source::kStretch; }) return Source::kStretch;
  return 160;
}

// A matrix in memory as an operand: element (i, p) at data[i * i_stride + p * p_stride], where p
// runs along the summed dimension. With kMasked, elements whose `mask` is at most zero count
// as zero: the ReLU backward without a pass of its own.
template <class T, bool kMasked = false>
struct StridedOperand {
  using Element = T;
  using Acc = acc_t<T>;
  static constexpr bool kPackOnce = true;
  const T* data;
  int64_t extent;  // number of i
  int64_t i_stride, p_stride;
  const T* mask = nullptr;

  Vec<Acc> load(int64_t offset) const {
    const auto x = Vec<Acc>::load(data + offset);
    if constexpr (kMasked) return Vec<Acc>::where_positive(Vec<Acc>::load(mask + offset), x);
    return x;
  }
  Vec<Acc> load(int64_t offset, int n) const {
    const auto x = Vec<Acc>::load(data + offset, n);
    if constexpr (kMasked) return Vec<Acc>::where_positive(Vec<Acc>::load(mask + offset, n), x);
    return x;
  }
  // Panels of a large matrix are strips of many pages, too short for the machine to foresee: the
  // same strip of the next panel is asked for while this one is read. Of 16-bit numbers, half as
  // many bytes, it gained nothing (Sapphire Rapids, November 2026).
  void prefetch(int64_t offset) const {
    if constexpr (sizeof(T) == 2) return;
    prefetch_to_l2(data + offset);
    if constexpr (kMasked) prefetch_to_l2(mask + offset);
  }
  void prefetch_row(int64_t i, int64_t p) const {
    if (i < extent) prefetch(i * i_stride + p);
  }

  Acc at(int64_t offset) const {
    if constexpr (kMasked) {
      if (static_cast<Acc>(mask[offset]) <= 0) return 0;
    }
    return static_cast<Acc>(data[offset]);
  }

  // Row i along the summed dimension, when that is contiguous; zeros beyond the extent.
  bool rows_contiguous() const { return p_stride == 1; }
  Vec<Acc> load_row(int64_t i, int64_t p, int n) const {
    if (i >= extent || n <= 0) return Vec<Acc>::zero();
    const int64_t offset = i * i_stride + p;
    return n >= Vec<Acc>::kWidth ? load(offset) : load(offset, n);
  }

  // Whether panels side by side are cut from the same lines of memory.
  bool shares_lines(int width) const { return i_stride == 1 && width % (64 / sizeof(T)) != 0; }

  // `count` panels from i0 on, `apart` from each other, where all of them and a vector more lie
  // within the extent: from rows read once, since where these lie a power of two apart, no cache
  // would hold their lines until the next panel.
  template <int kWidth>
  void pack_beside(int64_t i0, int count, int64_t p0, int64_t depth, Acc* panels,
                   int64_t apart) const {
    constexpr int kV = Vec<Acc>::kWidth, kAhead = 4;
    for (int64_t p = 0; p < depth; ++p, panels += kWidth) {
      const int64_t base = i0 + (p0 + p) * p_stride;
      Acc* panel = panels;
      for (int k = 0; k < count; ++k, panel += apart) {
        if (p + kAhead < depth) prefetch(base + k * kWidth + kAhead * p_stride);
        for (int c = 0; c < kWidth; c += kV) {
          load(base + k * kWidth + c).store(panel + c, std::min(kV, kWidth - c));
        }
      }
    }
  }

  // panel[p * kWidth + i] for i < kWidth, p < depth; zero where i0 + i passes the extent.
  template <int kWidth>
  void pack(int64_t i0, int64_t p0, int64_t depth, Acc* panel) const {
    const int rows = static_cast<int>(std::min<int64_t>(kWidth, extent - i0));
    const int64_t base = i0 * i_stride + p0 * p_stride;
    if (i_stride == 1) {
      pack_along_i<kWidth>(base, rows, depth, panel);
    } else if constexpr (std::is_same_v<Acc, float>) {
      if (p_stride == 1) {
        pack_transposed<kWidth>(base, rows, depth, panel);
      } else {
        pack_elements<kWidth>(base, rows, depth, panel);
      }
    } else {
      pack_elements<kWidth>(base, rows, depth, panel);
    }
  }

 private:
  template <int kWidth>
  void pack_along_i(int64_t base, int rows, int64_t depth, Acc* panel) const {
    constexpr int kV = Vec<Acc>::kWidth;
    for (int64_t p = 0; p < depth; ++p, panel += kWidth, base += p_stride) {
      for (int c = 0; c < kWidth; c += kV) {
        const int room = std::min(kV, kWidth - c), have = std::clamp(rows - c, 0, room);
        const auto x = have == kV ? load(base + c)
                       : have > 0 ? load(base + c, have)
                                  : Vec<Acc>::zero();
        room == kV ? x.store(panel + c) : x.store(panel + c, room);
        if (have > 0) prefetch(base + c + kWidth);
      }
    }
  }

  // Blocks of vector width squared, transposed in registers.
  template <int kWidth>
  void pack_transposed(int64_t base, int rows, int64_t depth, Acc* panel) const {
    constexpr int kV = Vec<Acc>::kWidth, kStrips = (kWidth + kV - 1) / kV;
    const auto pack_strip = [&]<int kStrip>(std::integral_constant<int, kStrip>) {
      constexpr int kRow = kStrip * kV, kRoom = std::min(kV, kWidth - kRow);
      const int have = std::clamp(rows - kRow, 0, kRoom);
      for (int64_t p = 0; p < depth; p += kV) {
        const int columns = static_cast<int>(std::min<int64_t>(kV, depth - p));
        const int64_t from = base + kRow * i_stride + p;
        for (int r = 0; r < have; ++r) prefetch(from + (r + kWidth) * i_stride);
        Acc* out = panel + p * kWidth + kRow;
        have == kRoom&& columns == kV ? transpose_block<kRoom, kWidth>(from, out)
                                      : transpose_some<kRoom, kWidth>(from, have, columns, out);
      }
    };
    [&]<int... kStrip>(std::integer_sequence<int, kStrip...>) {
      (pack_strip(std::integral_constant<int, kStrip>{}), ...);
    }(std::make_integer_sequence<int, kStrips>{});
  }

  template <int kRows, int kWidth>
  void transpose_block(int64_t from, Acc* out) const {
    constexpr int kV = Vec<Acc>::kWidth;
    Vec<Acc> block[kV];
#pragma GCC unroll 16
    for (int r = 0; r < kV; ++r)
      block[r] = r < kRows ? load(from + r * i_stride) : Vec<Acc>::zero();
    transpose(block);
#pragma GCC unroll 16
    for (int q = 0; q < kV; ++q) {
      kRows == kV ? block[q].store(out + q * kWidth) : block[q].store(out + q * kWidth, kRows);
    }
  }

  // A block at an end of the matrix.
  template <int kRows, int kWidth>
  [[gnu::noinline]] void transpose_some(int64_t from, int rows, int columns, Acc* out) const {
    constexpr int kV = Vec<Acc>::kWidth;
    Vec<Acc> block[kV];
    for (int r = 0; r < kV; ++r) {
      block[r] = r < rows ? load(from + r * i_stride, columns) : Vec<Acc>::zero();
    }
    transpose(block);
    for (int q = 0; q < columns; ++q) block[q].store(out + q * kWidth, kRows);
  }

  template <int kWidth>
  void pack_elements(int64_t base, int rows, int64_t depth, Acc* panel) const {
    for (int64_t p = 0; p < depth; ++p, panel += kWidth, base += p_stride) {
      for (int i = 0; i < rows; ++i) panel[i] = at(base + i * i_stride);
      for (int i = rows; i < kWidth; ++i) panel[i] = 0;
    }
  }
};

// A source whose panels may be packed several at a time: see StridedOperand::pack_beside.
template <class Source>
concept SharesLines = requires(const Source& s) { s.shares_lines(0); };

template <int kWidth, class Acc, class Source>
void pack_whole(const Source& source, int64_t extent, int64_t depth, Acc* packed) {
  constexpr int64_t kSlice = 256;
  const int64_t slices = ceil_div(depth, kSlice);
  parallel_for(0, ceil_div(extent, kWidth) * slices, 4, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t i0 = task / slices * kWidth, p0 = task % slices * kSlice;
      source.template pack<kWidth>(i0, p0, std::min(kSlice, depth - p0),
                                   packed + i0 * depth + p0 * kWidth);
    }
  });
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE

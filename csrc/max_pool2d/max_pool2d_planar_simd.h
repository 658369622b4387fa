// Planar tensors: neighbouring outputs of a row are the lanes. At stride 1 a tap of theirs is one
// load, at stride 2 one load pair serves two taps (its even and its odd elements); at the edges
// loads are blended with -inf. Taps come in row-major order, so that the first maximum wins.
#pragma once

#include <algorithm>
#include <limits>

#include "core/lanes_simd.h"
#include "core/scratch.h"
#include "max_pool2d/max_pool2d.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// The best value so far and where it came from, lane by lane. A NaN beats everything before it; as
// only few windows hold one, the quick form leaves that out and notes that it may have met one.
template <class A, bool kWithCode, bool kQuick>
class Best {
 public:
  Vec<A> value = Vec<A>::set1(-std::numeric_limits<A>::infinity());
  Lanes<A> code{};

  // Of equal values the first stays, so that -0 and +0 come out as in the order of the taps.
  void update(Vec<A> v, Lanes<A> v_code) {
    auto wins = v.v > value.v;
    if constexpr (!kQuick) wins |= v.v != v.v;
    if constexpr (kWithCode) code = wins ? v_code : code;
    if constexpr (kQuick) {
      value = Vec<A>::max(v, value);
      sum_ = sum_ + v;
    } else {
      value.v = wins ? v.v : value.v;
    }
  }

  // Of all values: NaN when one of them is, or infinities of both signs are among them.
  Vec<A> sum() const { return sum_; }

 private:
  Vec<A> sum_ = Vec<A>::zero();
};

template <Argmax kArgmax>
struct WhereType {
  using type = uint8_t;
};
template <>
struct WhereType<Argmax::kIndex> {
  using type = int64_t;
};
template <Argmax kArgmax>
using where_t = typename WhereType<kArgmax>::type;

// Bytes of one stream: the processor's own prefetching keeps too few lines ahead.
inline constexpr int64_t kAhead = 8192;

// How a window's taps are numbered: as taps of the kernel, or as elements of the input plane.
struct CodeSteps {
  int64_t row, column;
};

template <Argmax kArgmax>
CodeSteps code_steps(const MaxPool2dParams& p) {
  if (kArgmax == Argmax::kIndex) return {p.w.size * p.h.dilation, p.w.dilation};
  return {p.w.kernel, 1};
}

// Row and column share of a window's first tap inside the input, whose code an all -inf window
// answers with.
template <Argmax kArgmax>
int64_t first_row_code(const MaxPool2dParams& p, const PoolWindow& rows) {
  return kArgmax == Argmax::kIndex ? rows.begin * p.w.size : rows.first_tap * p.w.kernel;
}
template <Argmax kArgmax>
int64_t first_column_code(const PoolWindow& columns) {
  return kArgmax == Argmax::kIndex ? columns.begin : columns.first_tap;
}

// Neighbouring outputs of a row are the lanes. kStride and kKernel are the width's; 0 stands for
// any other, and for stride 2 with dilation or a kernel of 1.
template <class T, Argmax kArgmax, int kStride, int kKernel>
class PlanarForward {
  using A = acc_t<T>;
  using V = Vec<A>;
  using Code = lane_t<A>;
  static constexpr int kV = V::kWidth;
  static constexpr bool kCodes = kArgmax != Argmax::kNone, kIndex = kArgmax == Argmax::kIndex;
  static constexpr bool kPairs = kStride == 2 && !kIndex && sizeof(A) == 4;
  static constexpr A kLowest = -std::numeric_limits<A>::infinity();

  // The last output whose window ends inside the input, or -1.
  static int64_t last_window_inside(const PoolAxis& axis) {
    const int64_t room = axis.size + axis.padding - axis.extent();
    return room < 0 ? -1 : room / axis.stride;
  }

  // How the taps of kV outputs are loaded.
  enum class Reach {
    kInside,   // none of them meets the padding: what is beyond the last output is not looked at
    kTwoRows,  // likewise, of half a register of outputs in each of two rows
    kEdge,     // some do: what lies beside the row is loaded and replaced by -inf
    kSparse,   // one by one: another stride, the tensor's first and last rows, NaNs
  };

  // The input rows [first, end) of a plane, in elements, that a row of outputs reads.
  struct Rows {
    int64_t first, end, code;  // the code of the first tap
    bool paired;               // the next outputs read the same rows `below_` elements further
  };
  // kV outputs of a row from j on.
  struct Block {
    const T *x, *end;  // the input rows
    int64_t code, j;
    int64_t out, room;  // the first output, and how many of this call there are from it on
  };

 public:
  explicit PlanarForward(const MaxPool2dParams& params)
      : p(params),
        steps_(code_steps<kArgmax>(p)),
        lanes_(std::min<int64_t>(kV, p.ow)),
        width_((p.ow + kV - 1) / kV * kV),
        reach_(p.w.stride * (kV - 1) + p.w.extent()),
        beyond_(std::max<int64_t>(0, reach_ - p.w.padding - p.w.size)),
        last_block_(std::max<int64_t>(0, p.ow - kV)),
        below_(p.h.stride * p.w.size),
        row_step_(p.h.dilation * p.w.size),
        rows_(p.oh),
        first_columns_(width_),
        inside_(kStride * width_ + reach_) {
    for (int64_t oh = 0; oh < p.oh; ++oh) {
      const PoolWindow window = p.h.window(oh);
      rows_[oh] = {window.begin * p.w.size, window.end * p.w.size,
                   first_row_code<kArgmax>(p, window), false};
    }
    for (int64_t j = 0; j < width_; ++j) {
      first_columns_[j] = static_cast<Code>(first_column_code<kArgmax>(p.w.window(j)));
    }
    for (int64_t i = 0; i < kStride * width_ + reach_; ++i) {
      inside_[i] = i >= p.w.padding && i < p.w.padding + p.w.size ? -1 : 0;
    }
    if constexpr (kStride != 0) {
      while (first_inside_ < p.ow && p.w.start(block(first_inside_)) < 0) first_inside_ += kV;
      const int64_t last = last_window_inside(p.w) - lanes_ + 1;
      end_inside_ = first_inside_;
      while (end_inside_ < p.ow && block(end_inside_) <= last) end_inside_ += kV;
    }
    const bool short_row = 2 * p.ow <= kV && end_inside_ >= p.ow && p.w.padding == 0;
    for (int64_t oh = 0; kPairs && short_row && oh < p.oh; ++oh) {
      const int64_t plane = oh + 1 < p.oh ? 0 : p.h.size * p.w.size;
      const Rows &rows = rows_[oh], &next = rows_[(oh + 1) % p.oh];
      rows_[oh].paired = next.first + plane == rows.first + below_ &&
                         next.end + plane == rows.end + below_ && next.code == rows.code;
    }
  }

  // Output rows of all planes.
  void run(int64_t begin, int64_t end) const {
    const int64_t plane = p.h.size * p.w.size;
    const T *x = static_cast<const T*>(p.x) + begin / p.oh * plane, *x_end = end_of_x();
    int64_t oh = begin % p.oh;
    for (int64_t row = begin; row < end;) {
      const Rows& rows = rows_[oh];
      const auto at = [&](int64_t next) {
        const int64_t j = block(next), out = row * p.ow + j;
        return Block{x + rows.first, x + rows.end, rows.code, j, out, end * p.ow - out};
      };
      const T* last = x + rows.end + beyond_;
      int count = 1;
      if constexpr (kPairs) {
        const bool two = rows.paired && row + 1 < end && last + below_ <= x_end;
        if (two && !any_nan(pool<Reach::kTwoRows, true>(at(0)))) count = 2;
      }
      if (count == 1) pool_row(at, last <= x_end ? end_inside_ : first_inside_);
      row += count;
      for (oh += count; oh >= p.oh; oh -= p.oh) x += plane;
    }
  }

 private:
  const T* end_of_x() const { return static_cast<const T*>(p.x) + p.n * p.c * p.h.size * p.w.size; }

  // The last block of a row reaches back over the one before rather than beyond the row.
  int64_t block(int64_t next) const { return std::min(next, last_block_); }

  // Of one row, the blocks from first_inside_ to end_inside meet no padding.
  template <class At>
  void pool_row(const At& at, int64_t end_inside) const {
    V sum = V::zero();
    for (int64_t next = first_inside_; next < end_inside; next += kV) {
      sum = sum + pool<Reach::kInside, true>(at(next));
    }
    const bool redo = any_nan(sum);
    if (first_inside_ == 0 && end_inside >= p.ow && !redo) return;
    for (int64_t next = 0; next < p.ow; next += kV) {
      if (redo || next < first_inside_ || next >= end_inside) pool_apart(at(next));
    }
  }

  // Apart, so that the registers of the usual path stay free.
  [[gnu::noinline]] void pool_apart(const Block& block) const {
    const int64_t start = p.w.start(block.j);
    const bool own = block.x + start >= static_cast<const T*>(p.x) &&
                     block.end - p.w.size + start + reach_ <= end_of_x();
    if (kStride == 0 || own) {
      const V sum = pool<kStride == 0 ? Reach::kSparse : Reach::kEdge, true>(block);
      if (!any_nan(sum)) return;
    }
    pool<Reach::kSparse, false>(block);
  }

  // The quick form's sum of all that it met is NaN where it may have been wrong.
  template <Reach kReach, bool kQuick>
  V pool(const Block& block) const {
    const auto column = static_cast<Code>(steps_.column), step = static_cast<Code>(steps_.row);
    const int64_t start = (kStride ? kStride : p.w.stride) * block.j - p.w.padding;
    Lanes<A> row_code = Lanes<A>{} + static_cast<Code>(block.code);
    Best<A, kCodes, kQuick> best;
    if constexpr (kCodes) {
      best.code = arrange<kReach>(row_code + load_lanes<A>(first_columns_.get() + block.j));
    }
    if constexpr (kIndex) {
      row_code += arrange<kReach>(lane_numbers<A>() * static_cast<Code>(p.w.stride));
      row_code += static_cast<Code>(start);
    }
    const int64_t kernel = kKernel ? kKernel : p.w.kernel;
    for (const T* x = block.x; x < block.end; x += row_step_, row_code += step) {
      if constexpr (kReach < Reach::kEdge) prefetch_block(x + start + kAhead / sizeof(T));
      Lanes<A> code = row_code;
      int64_t position = start, t = 0;
      if constexpr (kStride == 2) {
        for (; t + 2 <= kernel; t += 2, position += 2, code += 2 * column) {
          const auto [even, odd] = load_pair<kReach>(x, position);
          best.update(even, code);
          best.update(odd, code + column);
        }
      }
      for (; t < kernel; ++t, position += p.w.dilation, code += column) {
        best.update(load_tap<kReach>(x, position), code);
      }
    }
    const V value{arrange<kReach>(best.value.v)};
    const Lanes<A> code = arrange<kReach>(best.code);
    store_outputs(value, code, block.out, block.room);
    if constexpr (kReach == Reach::kTwoRows) {
      const V bits{(decltype(V::v))code};
      store_outputs(upper_half(value), (Lanes<A>)upper_half(bits).v, block.out + p.ow,
                    block.room - p.ow);
    }
    return best.sum();
  }

  // Of a row shorter than a register more is stored than it has: the next row is written later.
  void store_outputs(V value, Lanes<A> code, int64_t out, int64_t room) const {
    const int n = static_cast<int>(std::min<int64_t>(kV, room));
    store(value, static_cast<T*>(p.y) + out, n);
    if constexpr (kCodes) store_lanes<A>(code, static_cast<where_t<kArgmax>*>(p.where) + out, n);
  }

  // Every line of what kV outputs read of a row.
  static void prefetch_block(const T* x) {
    constexpr int kLine = 64 / sizeof(T);
    for (int i = 0; i < kStride * kV; i += kLine) prefetch_to_read(x + i);
  }

  // From the order of the outputs to that of their taps' lanes, and back.
  template <Reach kReach, class L>
  static L arrange(L x) {
    return kStride == 2 && kReach != Reach::kSparse ? in_order<T>(x) : x;
  }

  // What two neighbouring taps of kV outputs read, at stride 2.
  template <Reach kReach>
  VecPair<A> load_pair(const T* row, int64_t position) const {
    if constexpr (kReach == Reach::kSparse) {
      return {load_sparse(row, position), load_sparse(row, position + 1)};
    } else if constexpr (kReach == Reach::kInside) {
      return load_split(row + position);
    } else if constexpr (kReach == Reach::kTwoRows) {
      return split<T>(V::load(row + position), V::load(row + below_ + position));
    } else {
      return split<T>(load<kReach>(row, position), load<kReach>(row, position + kV));
    }
  }

  // What one tap of kV outputs reads.
  template <Reach kReach>
  V load_tap(const T* row, int64_t position) const {
    if constexpr (kReach == Reach::kSparse) {
      return load_sparse(row, position);
    } else if constexpr (kStride == 2) {
      // The second of a pair, so as not to read beyond the last output's last tap.
      return load_pair<kReach>(row, position - 1).second;
    } else {
      return load<kReach>(row, position);
    }
  }

  template <Reach kReach>
  V load(const T* row, int64_t position) const {
    const V x = V::load(row + position);
    if constexpr (kReach == Reach::kInside) return x;
    return {load_lanes<A>(inside_.get() + p.w.padding + position) ? x.v : V::set1(kLowest).v};
  }

  V load_sparse(const T* row, int64_t position) const {
    T lanes[kV]{};
    const int64_t last = position + (lanes_ - 1) * p.w.stride;
    const bool inside = position >= 0 && last < p.w.size;
    for (int64_t i = 0, at = position; i < lanes_; ++i, at += p.w.stride) {
      const bool here = inside || (at >= 0 && at < p.w.size);
      lanes[i] = here ? row[at] : static_cast<T>(kLowest);
    }
    return V::load(lanes);
  }

  const MaxPool2dParams& p;
  CodeSteps steps_;
  int64_t lanes_;       // that have an output
  int64_t width_;       // of an output row in whole registers
  int64_t reach_;       // elements that kV outputs read, from the first one's start
  int64_t beyond_;      // elements behind its last row that a short row's lanes read
  int64_t last_block_;  // of a row: it reaches back over the one before
  int64_t first_inside_ = 0, end_inside_ = 0;  // the blocks of a row that meet no padding
  int64_t below_;                // from the input rows of a row of outputs to the next one's
  int64_t row_step_;             // from the elements of a window in one row to those in the next
  Scratch<Rows> rows_;           // of each output row
  Scratch<Code> first_columns_;  // column share of each output's first code
  Scratch<Code> inside_;         // all ones where the padded row has an element
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE

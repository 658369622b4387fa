// Planar tensors: neighbouring outputs of a row are the lanes. At stride 1 a tap of theirs is one
// load, at stride 2 one load pair serves two taps (its even and its odd elements); at the edges
// loads are blended with -inf. With channels last the channels are the lanes. Taps come in
// row-major order, so that the first maximum wins.
#pragma once

#include <algorithm>
#include <limits>

#include "core/lanes_simd.h"
#include "core/parallel.h"
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

  // Also true when infinities of both signs met, which costs time alone.
  bool may_hold_nan() const { return any(sum_.v != sum_.v); }

 private:
  Vec<A> sum_ = Vec<A>::zero();  // of all values: NaN when one of them is
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
  static constexpr A kLowest = -std::numeric_limits<A>::infinity();
  static constexpr int64_t kAhead = 4096;  // bytes

  // The last output whose window ends inside the input, or -1.
  static int64_t last_window_inside(const PoolAxis& axis) {
    const int64_t room = axis.size + axis.padding - axis.extent();
    return room < 0 ? -1 : room / axis.stride;
  }

  // How the taps of kV outputs are loaded.
  enum class Reach {
    kInside,  // none of them meets the padding: what is beyond the last output is not looked at
    kEdge,    // some do: what lies beside the row is loaded and replaced by -inf
    kSparse,  // one by one: another stride, the tensor's first and last rows, NaNs
  };

  // kV outputs from j on over the input rows [x, end).
  struct Block {
    const T *x, *end;
    int64_t first_row_code, j;
    int64_t out, out_end;   // the first output, and the end of the outputs of this call
    int64_t before, after;  // elements of the tensor before `x`, and from its last row's start on
  };

 public:
  explicit PlanarForward(const MaxPool2dParams& params)
      : p(params),
        steps_(code_steps<kArgmax>(p)),
        lanes_(std::min<int64_t>(kV, p.ow)),
        width_((p.ow + kV - 1) / kV * kV),
        reach_(p.w.stride * (kV - 1) + p.w.extent()),
        first_inside_((p.w.padding + p.w.stride - 1) / p.w.stride),
        last_inside_(last_window_inside(p.w) - lanes_ + 1),
        first_columns_(width_),
        inside_(kStride * width_ + reach_) {
    for (int64_t j = 0; j < width_; ++j) {
      first_columns_[j] = static_cast<Code>(first_column_code<kArgmax>(p.w.window(j)));
    }
    for (int64_t i = 0; i < kStride * width_ + reach_; ++i) {
      inside_[i] = i >= p.w.padding && i < p.w.padding + p.w.size ? -1 : 0;
    }
  }

  // Output rows of all planes.
  void run(int64_t begin, int64_t end) const {
    const int64_t last_block = std::max<int64_t>(0, p.ow - kV);
    int64_t plane = begin / p.oh, oh = begin % p.oh;
    for (int64_t out_row = begin; out_row < end; ++out_row) {
      const PoolWindow window = p.h.window(oh);
      const int64_t before = (plane * p.h.size + window.begin) * p.w.size;
      const int64_t after = ((p.n * p.c - plane) * p.h.size - window.end + 1) * p.w.size;
      const T* x = static_cast<const T*>(p.x) + before;
      const T* x_end = x + (window.end - window.begin) * p.w.size;
      const int64_t code = first_row_code<kArgmax>(p, window);
      for (int64_t next = 0; next < p.ow; next += kV) {
        // The last block of a row reaches back over the one before rather than beyond the row.
        const int64_t j = std::min(next, last_block);
        const Block block{x, x_end, code, j, out_row * p.ow + j, end * p.ow, before, after};
        const bool inside =
            j >= first_inside_ && j <= last_inside_ && p.w.start(j) + reach_ <= after;
        if (kStride == 0 || !inside || !pool<Reach::kInside, true>(block)) pool_apart(block);
      }
      if (++oh == p.oh) {
        oh = 0;
        ++plane;
      }
    }
  }

 private:
  // Apart, so that the registers of the usual path stay free.
  [[gnu::noinline]] void pool_apart(const Block& block) const {
    const int64_t start = p.w.start(block.j);
    const bool own = block.before + start >= 0 && start + reach_ <= block.after;
    const bool done =
        kStride == 0 ? pool<Reach::kSparse, true>(block) : own && pool<Reach::kEdge, true>(block);
    if (!done) pool<Reach::kSparse, false>(block);
  }

  // False when the quick form met what may be a NaN.
  template <Reach kReach, bool kQuick>
  bool pool(const Block& block) const {
    const auto column = static_cast<Code>(steps_.column), step = static_cast<Code>(steps_.row);
    const int64_t start = p.w.start(block.j);
    Lanes<A> row_code = Lanes<A>{} + static_cast<Code>(block.first_row_code);
    Best<A, kCodes, kQuick> best;
    if constexpr (kCodes) {
      best.code = arrange<kReach>(row_code + load_lanes<A>(first_columns_.get() + block.j));
    }
    if constexpr (kIndex) {
      row_code += arrange<kReach>(lane_numbers<A>() * static_cast<Code>(p.w.stride));
      row_code += static_cast<Code>(start);
    }
    const int64_t row_step = p.h.dilation * p.w.size, kernel = kKernel ? kKernel : p.w.kernel;
    for (const T* x = block.x; x < block.end; x += row_step, row_code += step) {
      // A plane is one stream, of which the processor's own prefetching keeps too few lines ahead.
      if constexpr (kReach == Reach::kInside) prefetch_to_read(x + start + kAhead / sizeof(T));
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
    if (kQuick && best.may_hold_nan()) return false;
    const V value{arrange<kReach>(best.value.v)};
    const Lanes<A> code = arrange<kReach>(best.code);
    // Of a row shorter than a register more is stored than it has: the next row is written later.
    const int n = static_cast<int>(std::min<int64_t>(kV, block.out_end - block.out));
    store(value, static_cast<T*>(p.y) + block.out, n);
    if constexpr (kCodes) {
      store_lanes<A>(code, static_cast<where_t<kArgmax>*>(p.where) + block.out, n);
    }
    return true;
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
  int64_t lanes_;                       // that have an output
  int64_t width_;                       // of an output row in whole registers
  int64_t reach_;                       // elements that kV outputs read, from the first one's start
  int64_t first_inside_, last_inside_;  // outputs at which kV begin that meet no padding
  Scratch<Code> first_columns_;         // column share of each output's first code
  Scratch<Code> inside_;                // all ones where the padded row has an element
};

template <class T, Argmax kArgmax>
class ChannelsForward {
  using A = acc_t<T>;
  using V = Vec<A>;
  using Code = lane_t<A>;
  static constexpr int kV = V::kWidth;
  static constexpr bool kCodes = kArgmax != Argmax::kNone;

 public:
  explicit ChannelsForward(const MaxPool2dParams& params) : p(params) {}

  // Output rows of all images.
  void run(int64_t begin, int64_t end) const {
    for (int64_t row = begin; row < end; ++row) {
      const PoolWindow rows = p.h.window(row % p.oh);
      const T* image = static_cast<const T*>(p.x) + row / p.oh * p.h.size * p.w.size * p.c;
      for (int64_t ow = 0; ow < p.ow; ++ow) {
        const PoolWindow columns = p.w.window(ow);
        const int64_t out = (row * p.ow + ow) * p.c;
        int64_t c = 0;
        for (; c + kV <= p.c; c += kV) pool<true>(image + c, rows, columns, out + c, kV);
        if (c < p.c) pool<false>(image + c, rows, columns, out + c, static_cast<int>(p.c - c));
      }
    }
  }

 private:
  template <bool kWhole>
  void pool(const T* x, const PoolWindow& rows, const PoolWindow& columns, int64_t out,
            int n) const {
    const CodeSteps steps = code_steps<kArgmax>(p);
    int64_t row_code = first_row_code<kArgmax>(p, rows) + first_column_code<kArgmax>(columns);
    Best<A, kCodes, false> best;
    best.code += static_cast<Code>(row_code);
    for (int64_t i = rows.begin; i < rows.end; i += p.h.dilation, row_code += steps.row) {
      Lanes<A> code = Lanes<A>{} + static_cast<Code>(row_code);
      const T* at = x + (i * p.w.size + columns.begin) * p.c;
      for (int64_t j = columns.begin; j < columns.end; j += p.w.dilation) {
        best.update(kWhole ? V::load(at) : V::load(at, n), code);
        code += static_cast<Code>(steps.column);
        at += p.w.dilation * p.c;
      }
    }
    T* y = static_cast<T*>(p.y) + out;
    kWhole ? best.value.store(y) : best.value.store(y, n);
    if constexpr (kCodes) {
      store_lanes<A>(best.code, static_cast<where_t<kArgmax>*>(p.where) + out, n);
    }
  }

  const MaxPool2dParams& p;
};

template <class T, Argmax kArgmax>
void max_pool2d_forward(const MaxPool2dParams& p) {
  const int64_t planes = p.channels_last ? p.n : p.n * p.c;
  const int64_t row = p.w.size * p.h.stride * (p.channels_last ? p.c : 1);
  parallel_for(0, planes * p.oh, row_grain(row), [&](int64_t begin, int64_t end) {
    if (p.channels_last) return ChannelsForward<T, kArgmax>(p).run(begin, end);
    // The usual kernels unrolled: a quarter less time than with their size at run time.
    constexpr bool kUnroll = sizeof(T) < 8;
    const bool two = kUnroll && p.w.kernel == 2, three = kUnroll && p.w.kernel == 3;
    const auto pool = [&]<int kStride, int kKernel>() {
      PlanarForward<T, kArgmax, kStride, kUnroll ? kKernel : 0>(p).run(begin, end);
    };
    if (p.w.stride == 1 && three) return pool.template operator()<1, 3>();
    if (p.w.stride == 1) return pool.template operator()<1, 0>();
    if (p.w.stride > 2 || p.w.dilation > 1 || p.w.kernel == 1) {
      return pool.template operator()<0, 0>();
    }
    if (two) return pool.template operator()<2, 2>();
    if (three) return pool.template operator()<2, 3>();
    pool.template operator()<2, 0>();
  });
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE

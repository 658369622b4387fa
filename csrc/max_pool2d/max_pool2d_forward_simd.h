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

// The best value so far and where it came from, lane by lane.
template <class A, bool kWithCode>
struct Best {
  Vec<A> value = Vec<A>::set1(-std::numeric_limits<A>::infinity());
  Lanes<A> code{};

  // A later value wins when it is greater, or NaN: `max` instructions lose the NaN or the first of
  // two zeros.
  void update(Vec<A> v, Lanes<A> v_code) {
    const auto wins = (v.v > value.v) | (v.v != v.v);
    value.v = wins ? v.v : value.v;
    if constexpr (kWithCode) code = wins ? v_code : code;
  }
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

// Neighbouring outputs of a row are the lanes. kStride is the width's, 0 for any other.
template <class T, Argmax kArgmax, int kStride>
class PlanarForward {
  using A = acc_t<T>;
  using V = Vec<A>;
  using Code = lane_t<A>;
  static constexpr int kV = V::kWidth;
  static constexpr bool kCodes = kArgmax != Argmax::kNone, kIndex = kArgmax == Argmax::kIndex;
  static constexpr A kLowest = -std::numeric_limits<A>::infinity();

  // How the taps of kV outputs are loaded.
  enum class Reach {
    kInside,  // none of them meets the padding
    kEdge,    // some do: what lies beside the row is loaded and replaced by -inf
    kSparse,  // one by one: another stride, or the memory beside the row is not the tensor's
  };

 public:
  explicit PlanarForward(const MaxPool2dParams& params)
      : p(params),
        steps_(code_steps<kArgmax>(p)),
        paired_(kStride == 2 && p.w.dilation == 1),
        reach_(kStride * kV + (paired_ ? (p.w.kernel - 1) / 2 * 2 : p.w.extent() - 1)),
        width_((p.ow + kV - 1) / kV * kV),
        first_columns_(width_),
        inside_(width_ * kStride + reach_) {
    for (int64_t j = 0; j < width_; ++j) {
      first_columns_[j] = static_cast<Code>(first_column_code<kArgmax>(p.w.window(j)));
    }
    for (int64_t i = 0; i < width_ * kStride + reach_; ++i) {
      inside_[i] = i >= p.w.padding && i < p.w.padding + p.w.size ? -1 : 0;
    }
  }

  // Output rows of all planes.
  void run(int64_t begin, int64_t end) const {
    int64_t plane = begin / p.oh, oh = begin % p.oh;
    for (int64_t row = begin; row < end; ++row) {
      const PoolWindow window = p.h.window(oh);
      for (int64_t j = 0; j < p.ow; j += kV) {
        switch (reach(plane, window, j)) {
          case Reach::kInside:
            pool<Reach::kInside>(plane, window, j, row * p.ow);
            break;
          case Reach::kEdge:
            pool<Reach::kEdge>(plane, window, j, row * p.ow);
            break;
          case Reach::kSparse:
            pool<Reach::kSparse>(plane, window, j, row * p.ow);
        }
      }
      if (++oh == p.oh) {
        oh = 0;
        ++plane;
      }
    }
  }

 private:
  Reach reach(int64_t plane, const PoolWindow& rows, int64_t j) const {
    if (kStride == 0) return Reach::kSparse;
    const int64_t start = p.w.start(j), first_row = plane * p.h.size + rows.begin;
    const int64_t last_row = plane * p.h.size + rows.end - 1;
    const bool own_memory = first_row * p.w.size + start >= 0 &&
                            last_row * p.w.size + start + reach_ <= p.n * p.c * p.h.size * p.w.size;
    if (!own_memory) return Reach::kSparse;
    const int64_t last = p.w.start(std::min(j + kV, p.ow) - 1) + p.w.extent();
    return start >= 0 && last <= p.w.size ? Reach::kInside : Reach::kEdge;
  }

  // Elements position, position + 1, … of an input row; -inf where it has none.
  template <Reach kReach>
  V load(const T* row, int64_t position) const {
    const V x = V::load(row + position);
    if constexpr (kReach == Reach::kInside) return x;
    return {load_lanes<A>(inside_.get() + p.w.padding + position) ? x.v : V::set1(kLowest).v};
  }

  // What one tap of kV neighbouring outputs reads, and when taps come in pairs the next one too.
  template <Reach kReach>
  VecPair<A> load_taps(const T* row, int64_t position) const {
    if constexpr (kReach == Reach::kSparse) {
      return {load_sparse(row, position), load_sparse(row, position + 1)};
    } else if constexpr (kStride == 2) {
      return deinterleave(load<kReach>(row, position), load<kReach>(row, position + kV));
    } else {
      const V x = load<kReach>(row, position);
      return {x, x};
    }
  }
  V load_sparse(const T* row, int64_t position) const {
    T lanes[kV];
    for (int i = 0; i < kV; ++i, position += p.w.stride) {
      const bool inside = position >= 0 && position < p.w.size;
      lanes[i] = inside ? row[position] : static_cast<T>(kLowest);
    }
    return V::load(lanes);
  }

  // Outputs j, j + 1, … of the row that starts at `out`.
  template <Reach kReach>
  void pool(int64_t plane, const PoolWindow& rows, int64_t j, int64_t out) const {
    Lanes<A> row_code = Lanes<A>{} + static_cast<Code>(first_row_code<kArgmax>(p, rows));
    Best<A, kCodes> best;
    if constexpr (kCodes) best.code = row_code + load_lanes<A>(first_columns_.get() + j);
    if constexpr (kIndex) {
      const auto stride = static_cast<Code>(p.w.stride);
      row_code += lane_numbers<A>() * stride + static_cast<Code>(p.w.start(j));
    }
    const auto column = static_cast<Code>(steps_.column);
    for (int64_t i = rows.begin; i < rows.end; i += p.h.dilation) {
      const T* row = static_cast<const T*>(p.x) + (plane * p.h.size + i) * p.w.size;
      Lanes<A> code = row_code;
      int64_t position = p.w.start(j), t = 0;
      if (paired_) {
        for (; t + 2 <= p.w.kernel; t += 2, position += 2, code += 2 * column) {
          const auto [even, odd] = load_taps<kReach>(row, position);
          best.update(even, code);
          best.update(odd, code + column);
        }
      }
      for (; t < p.w.kernel; ++t, position += p.w.dilation, code += column) {
        best.update(load_taps<kReach>(row, position).first, code);
      }
      row_code += static_cast<Code>(steps_.row);
    }
    const int n = static_cast<int>(std::min<int64_t>(kV, p.ow - j));
    T* y = static_cast<T*>(p.y) + out + j;
    n == kV ? best.value.store(y) : best.value.store(y, n);
    if constexpr (kCodes) {
      store_lanes<A>(best.code, static_cast<where_t<kArgmax>*>(p.where) + out + j, n);
    }
  }

  const MaxPool2dParams& p;
  CodeSteps steps_;
  bool paired_;                  // one load serves two taps
  int64_t reach_;                // elements that kV outputs may load, from the first one's start
  int64_t width_;                // of an output row in whole registers
  Scratch<Code> first_columns_;  // column share of each output's first code
  Scratch<Code> inside_;         // all ones where the padded row has an element
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
    Best<A, kCodes> best;
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

// Enough work per thread to pay for waking it.
inline int64_t row_grain(int64_t row_elements) {
  return std::max<int64_t>(1, 16384 / row_elements);
}

template <class T, Argmax kArgmax>
void max_pool2d_forward(const MaxPool2dParams& p) {
  const int64_t planes = p.channels_last ? p.n : p.n * p.c;
  const int64_t row = p.w.size * p.h.stride * (p.channels_last ? p.c : 1);
  parallel_for(0, planes * p.oh, row_grain(row), [&](int64_t begin, int64_t end) {
    if (p.channels_last) return ChannelsForward<T, kArgmax>(p).run(begin, end);
    if (p.w.stride == 1) return PlanarForward<T, kArgmax, 1>(p).run(begin, end);
    if (p.w.stride == 2) return PlanarForward<T, kArgmax, 2>(p).run(begin, end);
    PlanarForward<T, kArgmax, 0>(p).run(begin, end);
  });
}

inline void max_pool2d_forward(const MaxPool2dParams& p) {
  dispatch_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    switch (p.argmax) {
      case Argmax::kNone:
        return max_pool2d_forward<T, Argmax::kNone>(p);
      case Argmax::kTap:
        return max_pool2d_forward<T, Argmax::kTap>(p);
      case Argmax::kIndex:
        return max_pool2d_forward<T, Argmax::kIndex>(p);
    }
  });
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE

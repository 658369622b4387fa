// A window's maximum is the maximum over its rows of each row's maximum, so every input row is
// reduced once, into a ring of reduced rows that windows of several output rows share. A row is
// first split into `stride` phases (elements 0, s, 2s, … then 1, s+1, …) padded with -inf: there
// tap t of neighbouring outputs lies at neighbouring addresses, for any stride, padding and
// dilation. With channels last the channels are the vector and nothing needs rearranging.
#pragma once

#include <algorithm>
#include <limits>

#include "core/lanes_simd.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "max_pool2d/max_pool2d.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

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

// Codes add up from a row's and a column's share: as a tap (row · kernel width, column) or as an
// index (row · W, column), where rows and columns count kernel taps or input elements.
template <class T, Argmax kArgmax>
class PlanarForward {
  using A = acc_t<T>;
  using V = Vec<A>;
  using Code = lane_t<A>;
  static constexpr int kV = V::kWidth;
  static constexpr bool kCodes = kArgmax != Argmax::kNone, kIndex = kArgmax == Argmax::kIndex;

 public:
  explicit PlanarForward(const MaxPool2dParams& params)
      : p(params),
        width_(round_up(p.ow, kV)),
        phase_(std::max(width_ + p.w.extent() / p.w.stride, (p.w.size + p.w.padding) / p.w.stride) +
               kV),
        slots_(std::min(p.h.extent(), p.h.size)),
        phases_(p.w.stride * phase_),
        line_(p.w.stride > 2 ? p.w.size + kV : 0),
        taps_(p.w.kernel),
        rows_(slots_ * width_),
        row_codes_(kCodes ? slots_ * width_ : 0),
        first_codes_(kCodes ? width_ : 0) {
    std::fill_n(phases_.get(), p.w.stride * phase_, -std::numeric_limits<A>::infinity());
    for (int64_t t = 0; t < p.w.kernel; ++t) taps_[t] = phase_of(t * p.w.dilation);
    if constexpr (kCodes) {
      for (int64_t j = 0; j < width_; ++j) {
        const PoolWindow cols = p.w.window(j);
        first_codes_[j] = static_cast<Code>(kIndex ? cols.begin : cols.first_tap);
      }
    }
  }

  // Output rows of all planes.
  void run(int64_t begin, int64_t end) const {
    int64_t reduced = 0;  // input rows of this plane above it are done
    for (int64_t row = begin; row < end; ++row) {
      const int64_t plane = row / p.oh, oh = row % p.oh;
      if (oh == 0) reduced = 0;
      const PoolWindow window = p.h.window(oh);
      // Also rows between dilated taps: the next window reads them.
      for (int64_t ih = std::max(reduced, p.h.start(oh)); ih < window.end; ++ih) {
        reduce_row(static_cast<const T*>(p.x) + (plane * p.h.size + ih) * p.w.size, ih % slots_);
      }
      reduced = std::max(reduced, window.end);
      pool_row(window, row * p.ow);
    }
  }

 private:
  // Offset in `phases_` of the padded row's element `position`.
  int64_t phase_of(int64_t position) const {
    return position % p.w.stride * phase_ + position / p.w.stride;
  }

  void split(const T* x) const {
    const int64_t width = p.w.size;
    if (p.w.stride == 1) return copy(x, phases_.get() + p.w.padding);
    A* even = phases_.get() + phase_of(p.w.padding);
    A* odd = phases_.get() + phase_of(p.w.padding + 1);
    if (p.w.stride == 2) {
      int64_t i = 0;
      for (; i + 2 * kV <= width; i += 2 * kV, even += kV, odd += kV) {
        const auto [e, o] = deinterleave(V::load(x + i), V::load(x + i + kV));
        e.store(even);
        o.store(odd);
      }
      if (i == width) return;
      const int n = static_cast<int>(width - i), low = std::min(n, kV);
      const auto [e, o] =
          deinterleave(V::load(x + i, low), n > low ? V::load(x + i + kV, n - low) : V::zero());
      e.store(even, (n + 1) / 2);
      o.store(odd, n / 2);
      return;
    }
    copy(x, line_.get());
    for (int64_t e = 0; e < std::min(p.w.stride, width); ++e) {
      A* phase = phases_.get() + phase_of(p.w.padding + e);
      for (int64_t i = e; i < width; i += p.w.stride) *phase++ = line_[i];
    }
  }

  void copy(const T* x, A* to) const {
    int64_t i = 0;
    for (; i + kV <= p.w.size; i += kV) V::load(x + i).store(to + i);
    if (const int n = static_cast<int>(p.w.size - i)) V::load(x + i, n).store(to + i, n);
  }

  void reduce_row(const T* x, int64_t slot) const {
    split(x);
    A* row = rows_.get() + slot * width_;
    const Code step = static_cast<Code>(kIndex ? p.w.dilation : 1);
    for (int64_t j = 0; j < width_; j += kV) {
      Best<A, kCodes> best;
      Lanes<A> code{};
      if constexpr (kCodes) best.code = load_lanes<A>(first_codes_.get() + j);
      if constexpr (kIndex) {
        code = lane_numbers<A>() * static_cast<Code>(p.w.stride) + static_cast<Code>(p.w.start(j));
      }
      for (int64_t t = 0; t < p.w.kernel; ++t, code += step) {
        best.update(V::load(phases_.get() + taps_[t] + j), code);
      }
      best.value.store(row + j);
      if constexpr (kCodes) store_lanes<A>(best.code, row_codes_.get() + slot * width_ + j);
    }
  }

  void pool_row(const PoolWindow& window, int64_t out) const {
    const Code step = static_cast<Code>(kIndex ? p.w.size * p.h.dilation : p.w.kernel);
    const Code first =
        static_cast<Code>(kIndex ? window.begin * p.w.size : window.first_tap * p.w.kernel);
    for (int64_t j = 0; j < p.ow; j += kV) {
      Best<A, kCodes> best;
      Code code = first;
      if constexpr (kCodes) best.code = load_lanes<A>(first_codes_.get() + j) + code;
      int64_t slot = window.begin % slots_;
      for (int64_t ih = window.begin; ih < window.end; ih += p.h.dilation, code += step) {
        Lanes<A> row_code{};
        if constexpr (kCodes) {
          row_code = load_lanes<A>(row_codes_.get() + slot * width_ + j) + code;
        }
        best.update(V::load(rows_.get() + slot * width_ + j), row_code);
        slot += p.h.dilation;
        if (slot >= slots_) slot -= slots_;
      }
      const int n = static_cast<int>(std::min<int64_t>(kV, p.ow - j));
      T* y = static_cast<T*>(p.y) + out + j;
      n == kV ? best.value.store(y) : best.value.store(y, n);
      if constexpr (kCodes) {
        store_lanes<A>(best.code, static_cast<where_t<kArgmax>*>(p.where) + out + j, n);
      }
    }
  }

  const MaxPool2dParams& p;
  int64_t width_;  // of an output row, in whole vectors
  int64_t phase_;  // elements per phase
  int64_t slots_;  // reduced rows alive at a time
  Scratch<A> phases_, line_;
  Scratch<int64_t> taps_;  // offsets in `phases_`
  Scratch<A> rows_;
  Scratch<Code> row_codes_;
  Scratch<Code> first_codes_;  // of each window's first column: what an all -inf window answers
};

template <class T, Argmax kArgmax>
class ChannelsForward {
  using A = acc_t<T>;
  using V = Vec<A>;
  using Code = lane_t<A>;
  static constexpr int kV = V::kWidth;
  static constexpr bool kCodes = kArgmax != Argmax::kNone, kIndex = kArgmax == Argmax::kIndex;

 public:
  explicit ChannelsForward(const MaxPool2dParams& params) : p(params) {}

  // Output rows of all images.
  void run(int64_t begin, int64_t end) const {
    for (int64_t row = begin; row < end; ++row) {
      const PoolWindow rows = p.h.window(row % p.oh);
      const T* image = static_cast<const T*>(p.x) + row / p.oh * p.h.size * p.w.size * p.c;
      for (int64_t ow = 0; ow < p.ow; ++ow) {
        const PoolWindow cols = p.w.window(ow);
        const int64_t out = (row * p.ow + ow) * p.c;
        int64_t c = 0;
        for (; c + kV <= p.c; c += kV) pool<true>(image + c, rows, cols, out + c, kV);
        if (c < p.c) pool<false>(image + c, rows, cols, out + c, static_cast<int>(p.c - c));
      }
    }
  }

 private:
  template <bool kWhole>
  void pool(const T* x, const PoolWindow& rows, const PoolWindow& cols, int64_t out, int n) const {
    const int64_t row_step = kIndex ? p.w.size * p.h.dilation : p.w.kernel;
    const int64_t col_step = kIndex ? p.w.dilation : 1;
    int64_t row_code =
        kIndex ? rows.begin * p.w.size + cols.begin : rows.first_tap * p.w.kernel + cols.first_tap;
    Best<A, kCodes> best;
    best.code += static_cast<Code>(row_code);
    for (int64_t i = rows.begin; i < rows.end; i += p.h.dilation, row_code += row_step) {
      Lanes<A> code = Lanes<A>{} + static_cast<Code>(row_code);
      const T* at = x + (i * p.w.size + cols.begin) * p.c;
      for (int64_t j = cols.begin; j < cols.end; j += p.w.dilation, at += p.w.dilation * p.c) {
        best.update(kWhole ? V::load(at) : V::load(at, n), code);
        code += static_cast<Code>(col_step);
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
    PlanarForward<T, kArgmax>(p).run(begin, end);
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

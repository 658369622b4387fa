// Every element of grad_x gathers from the windows that cover it, in the order of the outputs: one
// dense write, no zeroing, no scatter, the same sum whatever the threads. A gradient counts where
// the saved code names this element. Along a row, elements `stride` apart read neighbouring
// outputs, so the row is computed as `stride` interleaved residues.
#pragma once

#include <algorithm>
#include <type_traits>

#include "core/lanes_simd.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "max_pool2d/max_pool2d.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Outputs [begin, end) whose window spans input position i (with dilation it may still miss it).
struct Covering {
  int64_t begin, end;
};

inline Covering covering(const PoolAxis& axis, int64_t outputs, int64_t i) {
  const int64_t last = i + axis.padding, first = last - axis.extent() + 1;
  return {first > 0 ? (first + axis.stride - 1) / axis.stride : 0,
          std::min(outputs, last / axis.stride + 1)};
}

// Most outputs a position can be covered by.
inline int64_t max_covering(const PoolAxis& axis) { return (axis.extent() - 1) / axis.stride + 1; }

// The kernel tap by which output o reads input position i, or -1.
inline int64_t tap_at(const PoolAxis& axis, int64_t o, int64_t i) {
  const int64_t distance = i - axis.start(o);
  return distance % axis.dilation == 0 ? distance / axis.dilation : -1;
}

template <class T, class Where>
class PlanarBackward {
  using A = acc_t<T>;
  using V = Vec<A>;
  using Code = lane_t<A>;
  static constexpr int kV = V::kWidth;
  static constexpr bool kIndex = std::is_same_v<Where, int64_t>;

  // Of one residue: element m is tap `tap` of output m + shift.
  struct ColumnTap {
    int64_t tap, shift;
  };
  // An output row that covers the input row, and its share of the code.
  struct CoveringRow {
    int64_t offset, code;
  };

 public:
  explicit PlanarBackward(const MaxPool2dBackwardParams& params)
      : p(params),
        residue_((p.w.size + p.w.stride - 1) / p.w.stride),
        taps_(p.w.kernel),
        taps_end_(p.w.stride + 1),
        rows_(max_covering(p.h)),
        line_(p.w.stride > 2 ? p.w.stride * (residue_ + kV) : 0),
        left_(max_covering(p.w)),
        inside_(left_ + residue_ + p.w.padding + 2 * kV) {
    for (int64_t i = 0; i < left_ + residue_ + p.w.padding + 2 * kV; ++i) {
      inside_[i] = i >= left_ && i < left_ + p.ow ? -1 : 0;
    }
    int64_t count = 0;
    taps_end_[0] = 0;
    for (int64_t e = 0; e < p.w.stride; ++e) {
      for (int64_t t = p.w.kernel - 1; t >= 0; --t) {
        const int64_t distance = e + p.w.padding - t * p.w.dilation;
        if (distance % p.w.stride == 0) taps_[count++] = {t, distance / p.w.stride};
      }
      taps_end_[e + 1] = count;
    }
  }

  // Input rows of all planes.
  void run(int64_t begin, int64_t end) const {
    int64_t plane = begin / p.h.size, ih = begin % p.h.size;
    for (int64_t row = begin; row < end; ++row) {
      const Covering cover = covering(p.h, p.oh, ih);
      int64_t count = 0;
      for (int64_t oh = cover.begin; oh < cover.end; ++oh) {
        const int64_t tap = tap_at(p.h, oh, ih);
        if (tap < 0) continue;
        rows_[count++] = {(plane * p.oh + oh) * p.ow, kIndex ? ih * p.w.size : tap * p.w.kernel};
      }
      write_row(static_cast<T*>(p.grad_x) + row * p.w.size, count);
      if (++ih == p.h.size) {
        ih = 0;
        ++plane;
      }
    }
  }

 private:
  struct Gradients {
    V grad;
    Lanes<A> code;
  };

  // Of the outputs at, at + 1, … of all planes.
  Gradients load(int64_t at) const {
    const T* grad = static_cast<const T*>(p.grad_y) + at;
    const Where* where = static_cast<const Where*>(p.where) + at;
    const int64_t room = p.n * p.c * p.oh * p.ow - at;
    if (at >= 0 && room >= kV) return {V::load(grad), load_lanes<A>(where, kV)};
    // The memory beside the first and the last row is not the tensor's.
    T grads[kV] = {};
    Where codes[kV] = {};
    for (int64_t i = std::max<int64_t>(0, -at); i < std::min<int64_t>(kV, room); ++i) {
      grads[i] = grad[i];
      codes[i] = where[i];
    }
    return {V::load(grads), load_lanes<A>(codes, kV)};
  }

  // Elements m, m + 1, … of residue e.
  V gather(int64_t e, int64_t m, int64_t count) const {
    V sum = V::zero();
    Lanes<A> column{};
    if constexpr (kIndex) {
      column = (lane_numbers<A>() + static_cast<Code>(m)) * static_cast<Code>(p.w.stride) +
               static_cast<Code>(e);
    }
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t t = taps_end_[e]; t < taps_end_[e + 1]; ++t) {
        const auto [tap, shift] = taps_[t];
        const auto [g, code] = load(rows_[r].offset + m + shift);
        const auto mine = code == column + static_cast<Code>(rows_[r].code + (kIndex ? 0 : tap));
        const auto inside = load_lanes<A>(inside_.get() + left_ + m + shift);
        sum = sum + V{mine & inside ? g.v : V::zero().v};
      }
    }
    return sum;
  }

  static void store(V x, T* to, int64_t room) {
    if (room >= kV) return x.store(to);
    if (room > 0) x.store(to, static_cast<int>(room));
  }

  void write_row(T* grad_x, int64_t count) const {
    const int64_t width = p.w.size;
    if (p.w.stride == 1) {
      for (int64_t m = 0; m < width; m += kV) store(gather(0, m, count), grad_x + m, width - m);
      return;
    }
    if (p.w.stride == 2) {
      for (int64_t m = 0; m < residue_; m += kV) {
        const auto [low, high] = interleave(gather(0, m, count), gather(1, m, count));
        store(low, grad_x + 2 * m, width - 2 * m);
        store(high, grad_x + 2 * m + kV, width - 2 * m - kV);
      }
      return;
    }
    alignas(64) A lanes[kV];
    for (int64_t e = 0; e < p.w.stride; ++e) {
      for (int64_t m = 0; m < residue_; m += kV) {
        gather(e, m, count).store(lanes);
        for (int64_t i = 0; i < kV; ++i) line_[(m + i) * p.w.stride + e] = lanes[i];
      }
    }
    for (int64_t i = 0; i < width; i += kV) store(V::load(line_.get() + i), grad_x + i, width - i);
  }

  const MaxPool2dBackwardParams& p;
  int64_t residue_;          // elements of a row per residue
  Scratch<ColumnTap> taps_;  // by residue, then in the order of the outputs
  Scratch<int64_t> taps_end_;
  Scratch<CoveringRow> rows_;
  Scratch<A> line_;
  int64_t left_;          // positions before the row in `inside_`
  Scratch<Code> inside_;  // all ones where the row has an output
};

template <class T, class Where>
class ChannelsBackward {
  using A = acc_t<T>;
  using V = Vec<A>;
  using Code = lane_t<A>;
  static constexpr int kV = V::kWidth;
  static constexpr bool kIndex = std::is_same_v<Where, int64_t>;

  // An output pixel that covers the input pixel, and the code by which it means it.
  struct CoveringPixel {
    int64_t offset, code;
  };

 public:
  explicit ChannelsBackward(const MaxPool2dBackwardParams& params)
      : p(params), pixels_(max_covering(p.h) * max_covering(p.w)) {}

  // Input rows of all images.
  void run(int64_t begin, int64_t end) const {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t iw = 0; iw < p.w.size; ++iw) {
        const int64_t count = cover(row / p.h.size, row % p.h.size, iw);
        T* grad_x = static_cast<T*>(p.grad_x) + (row * p.w.size + iw) * p.c;
        int64_t c = 0;
        for (; c + kV <= p.c; c += kV) gather<true>(c, kV, count).store(grad_x + c);
        const int n = static_cast<int>(p.c - c);
        if (n > 0) gather<false>(c, n, count).store(grad_x + c, n);
      }
    }
  }

 private:
  int64_t cover(int64_t image, int64_t ih, int64_t iw) const {
    const Covering rows = covering(p.h, p.oh, ih), cols = covering(p.w, p.ow, iw);
    int64_t count = 0;
    for (int64_t oh = rows.begin; oh < rows.end; ++oh) {
      const int64_t row_tap = tap_at(p.h, oh, ih);
      if (row_tap < 0) continue;
      for (int64_t ow = cols.begin; ow < cols.end; ++ow) {
        const int64_t col_tap = tap_at(p.w, ow, iw);
        if (col_tap < 0) continue;
        pixels_[count++] = {((image * p.oh + oh) * p.ow + ow) * p.c,
                            kIndex ? ih * p.w.size + iw : row_tap * p.w.kernel + col_tap};
      }
    }
    return count;
  }

  template <bool kWhole>
  V gather(int64_t c, int n, int64_t count) const {
    V sum = V::zero();
    for (int64_t i = 0; i < count; ++i) {
      const auto [offset, code] = pixels_[i];
      const T* grad = static_cast<const T*>(p.grad_y) + offset + c;
      const V g = kWhole ? V::load(grad) : V::load(grad, n);
      const auto where = load_lanes<A>(static_cast<const Where*>(p.where) + offset + c, n);
      sum = sum + V{where == Lanes<A>{} + static_cast<Code>(code) ? g.v : V::zero().v};
    }
    return sum;
  }

  const MaxPool2dBackwardParams& p;
  Scratch<CoveringPixel> pixels_;
};

template <class T, class Where>
void max_pool2d_backward(const MaxPool2dBackwardParams& p) {
  const int64_t planes = p.channels_last ? p.n : p.n * p.c;
  const int64_t row = p.w.size * (p.channels_last ? p.c : 1);
  const int64_t grain = std::max<int64_t>(1, 16384 / row);  // pays for waking a thread
  parallel_for(0, planes * p.h.size, grain, [&](int64_t begin, int64_t end) {
    if (p.channels_last) return ChannelsBackward<T, Where>(p).run(begin, end);
    PlanarBackward<T, Where>(p).run(begin, end);
  });
}

inline void max_pool2d_backward(const MaxPool2dBackwardParams& p) {
  dispatch_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    p.argmax == Argmax::kIndex ? max_pool2d_backward<T, int64_t>(p)
                               : max_pool2d_backward<T, uint8_t>(p);
  });
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE

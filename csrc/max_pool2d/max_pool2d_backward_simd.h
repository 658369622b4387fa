// Every element of grad_x gathers from the windows that cover it, in the order of the outputs: one
// dense write, no zeroing, no scatter, the same sum whatever the threads. A gradient counts where
// the saved code names this element.
#pragma once

#include <algorithm>
#include <type_traits>

#include "core/lanes_simd.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "max_pool2d/max_pool2d.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Elements `stride` apart form a residue and read neighbouring outputs: element m of a residue is
// some tap of output m + shift. kStride residues are computed together, as they share the outputs
// they read, and written interleaved; 0 stands for other strides, one residue at a time.
template <class T, class Where, int kStride>
class PlanarBackward {
  using A = acc_t<T>;
  using V = Vec<A>;
  using Code = lane_t<A>;
  static constexpr int kV = V::kWidth, kTogether = std::max(kStride, 1);
  static constexpr bool kIndex = std::is_same_v<Where, int64_t>;

  // For each residue computed together, the tap by which it reads the outputs at `shift`, or -1.
  struct Shift {
    int64_t shift, taps[kTogether];
  };
  // An output row that covers the input row, and its share of the code.
  struct CoveringRow {
    int64_t offset, code;
  };
  struct Gradients {
    V grad;
    Lanes<A> code;
  };

 public:
  explicit PlanarBackward(const MaxPool2dBackwardParams& params)
      : p(params),
        groups_(p.w.stride / kTogether),
        residue_((p.w.size + p.w.stride - 1) / p.w.stride),
        left_(p.w.max_covering()),
        rows_(p.h.max_covering()),
        shifts_(groups_ * (p.w.max_covering() + 1) + 1),
        shifts_end_(groups_ + 1),
        inside_(left_ + residue_ + p.w.padding + 2 * kV),
        line_(kStride == 0 ? p.w.stride * (residue_ + kV) : 0) {
    for (int64_t i = 0; i < left_ + residue_ + p.w.padding + 2 * kV; ++i) {
      inside_[i] = i >= left_ && i < left_ + p.ow ? -1 : 0;
    }
    int64_t count = 0;
    for (int64_t group = 0; group < groups_; ++group) {
      shifts_end_[group] = count;
      const int64_t first = group * kTogether;
      const int64_t last_shift = (first + kTogether - 1 + p.w.padding) / p.w.stride;
      for (int64_t shift = 1 - left_; shift <= last_shift; ++shift) {
        Shift& entry = shifts_[count];
        entry.shift = shift;
        bool used = false;
        for (int64_t e = 0; e < kTogether; ++e) {
          entry.taps[e] = p.w.tap_at(shift, first + e);
          used = used || entry.taps[e] >= 0;
        }
        count += used;
      }
    }
    shifts_end_[groups_] = count;
  }

  // Input rows of all planes.
  void run(int64_t begin, int64_t end) const {
    int64_t plane = begin / p.h.size, ih = begin % p.h.size;
    for (int64_t row = begin; row < end; ++row) {
      const PoolCovering cover = p.h.covering(ih, p.oh);
      int64_t count = 0;
      for (int64_t oh = cover.begin; oh < cover.end; ++oh) {
        const int64_t tap = p.h.tap_at(oh, ih);
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
  // Of the outputs at, at + 1, … of all planes.
  Gradients load(int64_t at) const {
    const T* grad = static_cast<const T*>(p.grad_y) + at;
    const Where* where = static_cast<const Where*>(p.where) + at;
    const int64_t room = p.n * p.c * p.oh * p.ow - at;
    if (at >= 0 && room >= kV) [[likely]]
      return {V::load(grad), load_lanes<A>(where, kV)};
    // The memory beside the first and the last row is not the tensor's.
    T grads[kV] = {};
    Where codes[kV] = {};
    for (int64_t i = std::max<int64_t>(0, -at); i < std::min<int64_t>(kV, room); ++i) {
      grads[i] = grad[i];
      codes[i] = where[i];
    }
    return {V::load(grads), load_lanes<A>(codes, kV)};
  }

  // Elements m, m + 1, … of the group's residues.
  void gather(int64_t group, int64_t m, int64_t count, V (&sums)[kTogether]) const {
    Lanes<A> column{};
    if constexpr (kIndex) {
      const auto stride = static_cast<Code>(p.w.stride);
      column = (lane_numbers<A>() + static_cast<Code>(m)) * stride;
      column += static_cast<Code>(group * kTogether);
    }
    for (V& sum : sums) sum = V::zero();
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t s = shifts_end_[group]; s < shifts_end_[group + 1]; ++s) {
        const Shift& entry = shifts_[s];
        const auto [grad, code] = load(rows_[r].offset + m + entry.shift);
        const auto inside = load_lanes<A>(inside_.get() + left_ + m + entry.shift);
        for (int e = 0; e < kTogether; ++e) {
          if (entry.taps[e] < 0) continue;
          const int64_t share = rows_[r].code + (kIndex ? e : entry.taps[e]);
          const auto mine = inside & (code == column + static_cast<Code>(share));
          sums[e] = sums[e] + V{mine ? grad.v : V::zero().v};
        }
      }
    }
  }

  static void store(V x, T* to, int64_t room) {
    if (room >= kV) return x.store(to);
    if (room > 0) x.store(to, static_cast<int>(room));
  }

  void write_row(T* grad_x, int64_t count) const {
    const int64_t width = p.w.size;
    V sums[kTogether];
    for (int64_t group = 0; group < groups_; ++group) {
      for (int64_t m = 0; m < residue_; m += kV) {
        gather(group, m, count, sums);
        if constexpr (kStride == 1) {
          store(sums[0], grad_x + m, width - m);
        } else if constexpr (kStride == 2) {
          const auto [low, high] = interleave(sums[0], sums[1]);
          store(low, grad_x + 2 * m, width - 2 * m);
          store(high, grad_x + 2 * m + kV, width - 2 * m - kV);
        } else {
          alignas(64) A lanes[kV];
          sums[0].store(lanes);
          for (int64_t i = 0; i < kV; ++i) line_[(m + i) * p.w.stride + group] = lanes[i];
        }
      }
    }
    if constexpr (kStride == 0) {
      for (int64_t i = 0; i < width; i += kV) {
        store(V::load(line_.get() + i), grad_x + i, width - i);
      }
    }
  }

  const MaxPool2dBackwardParams& p;
  int64_t groups_;   // of residues computed together
  int64_t residue_;  // elements of a row per residue
  int64_t left_;     // positions before the row in `inside_`
  Scratch<CoveringRow> rows_;
  Scratch<Shift> shifts_;  // by group, then in the order of the outputs
  Scratch<int64_t> shifts_end_;
  Scratch<Code> inside_;  // all ones where the row has an output
  Scratch<A> line_;
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
      : p(params), pixels_(p.h.max_covering() * p.w.max_covering()) {}

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
    const PoolCovering rows = p.h.covering(ih, p.oh), cols = p.w.covering(iw, p.ow);
    int64_t count = 0;
    for (int64_t oh = rows.begin; oh < rows.end; ++oh) {
      const int64_t row_tap = p.h.tap_at(oh, ih);
      if (row_tap < 0) continue;
      for (int64_t ow = cols.begin; ow < cols.end; ++ow) {
        const int64_t col_tap = p.w.tap_at(ow, iw);
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
    if (p.w.stride == 1) return PlanarBackward<T, Where, 1>(p).run(begin, end);
    if (p.w.stride == 2) return PlanarBackward<T, Where, 2>(p).run(begin, end);
    PlanarBackward<T, Where, 0>(p).run(begin, end);
  });
}

inline void max_pool2d_backward(const MaxPool2dBackwardParams& p) {
  dispatch_dtype<kKernelTypes>(p.dtype, [&](auto t) {
    using T = decltype(t);
    p.argmax == Argmax::kIndex ? max_pool2d_backward<T, int64_t>(p)
                               : max_pool2d_backward<T, uint8_t>(p);
  });
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE

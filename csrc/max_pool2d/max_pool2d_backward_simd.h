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
#include "max_pool2d/max_pool2d_square_backward_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Elements `stride` apart form a residue and read neighbouring outputs: element m of a residue is
// some tap of output m + shift. The kStride residues are computed together, as they share the
// outputs they read, and written interleaved.
template <class T, class Where, int kStride>
class PlanarBackward {
  using A = acc_t<T>;
  using V = Vec<A>;
  using Code = lane_t<A>;
  static constexpr int kV = V::kWidth;
  static constexpr bool kIndex = std::is_same_v<Where, int64_t>;

  // For each residue, the tap by which it reads the outputs at `shift`, or -1.
  struct Shift {
    int64_t shift, taps[kStride];
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
        residue_((p.w.size + kStride - 1) / kStride),
        left_(p.w.max_covering()),
        rows_(p.h.max_covering()),
        shifts_(p.w.max_covering() + 2),
        inside_(left_ + residue_ + p.w.padding + 2 * kV) {
    for (int64_t i = 0; i < left_ + residue_ + p.w.padding + 2 * kV; ++i) {
      inside_[i] = i >= left_ && i < left_ + p.ow ? -1 : 0;
    }
    const int64_t last_shift = (kStride - 1 + p.w.padding) / kStride;
    for (int64_t shift = 1 - left_; shift <= last_shift; ++shift) {
      Shift& entry = shifts_[shifts_used_];
      entry.shift = shift;
      bool used = false;
      for (int64_t e = 0; e < kStride; ++e) {
        entry.taps[e] = p.w.tap_at(shift, e);
        used = used || entry.taps[e] >= 0;
      }
      shifts_used_ += used;
    }
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

  // Elements m, m + 1, … of the residues.
  void gather(int64_t m, int64_t count, V (&sums)[kStride]) const {
    Lanes<A> column{};
    if constexpr (kIndex) {
      column = (lane_numbers<A>() + static_cast<Code>(m)) * static_cast<Code>(kStride);
    }
    for (V& sum : sums) sum = V::zero();
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t s = 0; s < shifts_used_; ++s) {
        const Shift& entry = shifts_[s];
        const auto [grad, code] = load(rows_[r].offset + m + entry.shift);
        const auto inside = load_lanes<A>(inside_.get() + left_ + m + entry.shift);
        for (int e = 0; e < kStride; ++e) {
          if (entry.taps[e] < 0) continue;
          const int64_t share = rows_[r].code + (kIndex ? e : entry.taps[e]);
          const auto mine = inside & (code == column + static_cast<Code>(share));
          sums[e] = sums[e] + V{mine ? grad.v : V::zero().v};
        }
      }
    }
  }

  void write_row(T* grad_x, int64_t count) const {
    const int64_t width = p.w.size;
    V sums[kStride];
    for (int64_t m = 0; m < residue_; m += kV) {
      gather(m, count, sums);
      if constexpr (kStride == 1) {
        store_within(sums[0], grad_x + m, width - m);
      } else {
        const auto [low, high] = interleave(sums[0], sums[1]);
        store_within(low, grad_x + 2 * m, width - 2 * m);
        store_within(high, grad_x + 2 * m + kV, width - 2 * m - kV);
      }
    }
  }

  const MaxPool2dBackwardParams& p;
  int64_t residue_;  // elements of a row per residue
  int64_t left_;     // positions before the row in `inside_`
  Scratch<CoveringRow> rows_;
  Scratch<Shift> shifts_;  // in the order of the outputs
  int64_t shifts_used_ = 0;
  Scratch<Code> inside_;  // all ones where the row has an output
};

template <class T, class Where>
class ChannelsBackward {
  using A = acc_t<T>;
  using V = Vec<A>;
  using Code = lane_t<A>;
  static constexpr int kV = V::kWidth;
  static constexpr bool kIndex = std::is_same_v<Where, int64_t>;

  // An output row, or a pixel of one, that covers the input's, and its share of the code.
  struct Covering {
    int64_t offset, code;
  };

 public:
  explicit ChannelsBackward(const MaxPool2dBackwardParams& params)
      : p(params),
        rows_(p.h.max_covering()),
        columns_(p.w.size * p.w.max_covering()),
        columns_end_(p.w.size + 1) {
    int64_t count = columns_end_[0] = 0;
    for (int64_t iw = 0; iw < p.w.size; ++iw) {
      count += cover(p.w, iw, p.ow, columns_.get() + count, p.c, kIndex ? 0 : 1);
      columns_end_[iw + 1] = count;
    }
  }

  // Input rows of all images.
  void run(int64_t begin, int64_t end) const {
    const int64_t out_row = p.ow * p.c;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / p.h.size, ih = row % p.h.size;
      const int64_t count = cover(p.h, ih, p.oh, rows_.get(), out_row, kIndex ? 0 : p.w.kernel);
      for (int64_t r = 0; r < count; ++r) rows_[r].offset += image * p.oh * out_row;
      for (int64_t iw = 0; iw < p.w.size; ++iw) {
        T* grad_x = static_cast<T*>(p.grad_x) + (row * p.w.size + iw) * p.c;
        const int64_t index = kIndex ? ih * p.w.size + iw : 0;
        int64_t c = 0;
        const auto gather_all = [&]<int kVectors>() {
          for (; c + kVectors * kV <= p.c; c += kVectors * kV) {
            gather<kVectors>(grad_x + c, c, kV, count, iw, index);
          }
        };
        gather_all.template operator()<4>();
        gather_all.template operator()<1>();
        if (c < p.c) gather<0>(grad_x + c, c, static_cast<int>(p.c - c), count, iw, index);
      }
    }
  }

 private:
  // The outputs along one axis that cover position i: how many.
  static int64_t cover(const PoolAxis& axis, int64_t i, int64_t outputs, Covering* to, int64_t step,
                       int64_t tap_code) {
    const PoolCovering cover = axis.covering(i, outputs);
    int64_t count = 0;
    for (int64_t o = cover.begin; o < cover.end; ++o) {
      const int64_t tap = axis.tap_at(o, i);
      if (tap >= 0) to[count++] = {o * step, tap * tap_code};
    }
    return count;
  }

  // kVectors registers of channels from c on, which share the way over the outputs; 0: one of n
  // lanes.
  template <int kVectors>
  void gather(T* grad_x, int64_t c, int n, int64_t rows, int64_t iw, int64_t index) const {
    constexpr int kSums = kVectors ? kVectors : 1;
    V sums[kSums];
#pragma GCC unroll 4
    for (V& sum : sums) sum = V::zero();
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t s = columns_end_[iw]; s < columns_end_[iw + 1]; ++s) {
        const int64_t offset = rows_[r].offset + columns_[s].offset + c;
        const auto code = static_cast<Code>(rows_[r].code + columns_[s].code + index);
        const T* grad = static_cast<const T*>(p.grad_y) + offset;
        const Where* where = static_cast<const Where*>(p.where) + offset;
#pragma GCC unroll 4
        for (int v = 0; v < kSums; ++v) {
          const V g = kVectors ? V::load(grad + v * kV) : V::load(grad, n);
          const auto mine = load_lanes<A>(where + v * kV, kVectors ? kV : n) == Lanes<A>{} + code;
          sums[v] = sums[v] + V{mine ? g.v : V::zero().v};
        }
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < kSums; ++v) {
      kVectors ? sums[v].store(grad_x + v * kV) : sums[v].store(grad_x, n);
    }
  }

  const MaxPool2dBackwardParams& p;
  Scratch<Covering> rows_;
  Scratch<Covering> columns_;     // of all input columns, one after the other
  Scratch<int64_t> columns_end_;  // of each
};

// Whether the call's windows are square ones that are unrolled; if so, computes them.
template <class T>
bool unrolled_backward(const MaxPool2dBackwardParams& p) {
  const auto run = [&]<int kKernel, int kStride, int kPadding>() {
    using Backward = SquareBackward<T, kKernel, kStride, kPadding>;
    if (p.channels_last || !Backward::suits(p)) return false;
    parallel_for(0, p.n * p.c * Backward::rows(p), row_grain(kStride * p.w.size),
                 [&](int64_t begin, int64_t end) { Backward(p).run(begin, end); });
    return true;
  };
  return run.template operator()<2, 2, 0>() || run.template operator()<3, 2, 0>() ||
         run.template operator()<3, 2, 1>() || run.template operator()<3, 1, 1>();
}

template <class T, class Where>
void max_pool2d_backward(const MaxPool2dBackwardParams& p) {
  if (unrolled_backward<T>(p)) return;
  const int64_t planes = p.channels_last ? p.n : p.n * p.c;
  const int64_t row = p.w.size * (p.channels_last ? p.c : 1);
  parallel_for(0, planes * p.h.size, row_grain(row), [&](int64_t begin, int64_t end) {
    if (p.channels_last) return ChannelsBackward<T, Where>(p).run(begin, end);
    if (p.w.stride == 1) return PlanarBackward<T, Where, 1>(p).run(begin, end);
    PlanarBackward<T, Where, 2>(p).run(begin, end);
  });
}

inline void max_pool2d_backward(const MaxPool2dBackwardParams& p) {
  dispatch_dtype<kTileTypes>(p.dtype, [&](auto t) {
    using T = decltype(t);
    p.argmax == Argmax::kIndex ? max_pool2d_backward<T, int64_t>(p)
                               : max_pool2d_backward<T, uint8_t>(p);
  });
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE

// Large windows that overlap: the maxima of each row's kw taps first, then down columns the maxima
// of kh of those, kw + kh steps an output instead of kw·kh. The first maximum of a row, in the
// first row that has it, is the first of the window; so it is with NaNs, of which the last wins.
#pragma once

#include "max_pool2d/max_pool2d_forward_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Maxima of rows are stored and read again, which two passes over few taps do not pay for.
// Dilated windows may lie in the padding alone, without a row to ask for its maximum.
inline bool separable_pays(const MaxPool2dParams& p) {
  const int64_t taps = p.h.kernel * p.w.kernel, steps = p.h.stride * p.w.kernel + p.h.kernel;
  return p.h.dilation == 1 && p.w.dilation == 1 && p.h.kernel > 1 && p.w.kernel > 1 &&
         p.h.kernel <= 256 && 2 * taps >= 3 * steps && taps > 16;
}

// `count` planes (images where channels are last) from the `first` on.
template <class T, class Where>
MaxPool2dParams planes_of(MaxPool2dParams p, int64_t first, int64_t count) {
  const int64_t channels = p.channels_last ? p.c : 1;
  const int64_t in = first * p.h.size * p.w.size * channels, out = first * p.oh * p.ow * channels;
  p.x = static_cast<const T*>(p.x) + in;
  p.y = static_cast<T*>(p.y) + out;
  if (p.where != nullptr) p.where = static_cast<Where*>(p.where) + out;
  p.n = p.channels_last ? count : 1;
  p.c = p.channels_last ? p.c : count;
  return p;
}

// The place of each maximum, from its row among the taps and its place in that row.
template <class Where, Argmax kArgmax>
void place_maxima(const MaxPool2dParams& p, int64_t planes, int64_t line, const uint8_t* row_taps,
                  const Where* columns) {
  parallel_for(0, planes * p.oh, row_grain(line), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Where* from = columns + (row / p.oh * p.h.size + p.h.start(row % p.oh)) * line;
      const uint8_t* taps = row_taps + row * line;
      Where* where = static_cast<Where*>(p.where) + row * line;
      for (int64_t i = 0; i < line; ++i) {
        const Where column = from[taps[i] * line + i];
        where[i] =
            kArgmax == Argmax::kTap ? static_cast<Where>(taps[i] * p.w.kernel + column) : column;
      }
    }
  });
}

template <class T, Argmax kArgmax>
void separable_forward(const MaxPool2dParams& params) {
  using Where = where_t<kArgmax>;
  constexpr bool kCodes = kArgmax != Argmax::kNone;
  constexpr int64_t kElements = 1 << 17;  // of a thread's maxima of rows: they stay in its L2
  const int64_t planes = params.channels_last ? params.n : params.n * params.c;
  const int64_t line = params.ow * (params.channels_last ? params.c : 1);
  const int64_t plane = params.h.size * line, out_plane = params.oh * line;
  const int64_t group = std::clamp<int64_t>(num_threads() * kElements / plane, 1, planes);
  const Scratch<T> maxima(group * plane);
  const Scratch<Where> columns(kCodes ? group * plane : 0);
  const Scratch<uint8_t> row_taps(kCodes ? group * out_plane : 0);
  for (int64_t first = 0; first < planes; first += group) {
    const int64_t count = std::min(group, planes - first);
    const MaxPool2dParams p = planes_of<T, Where>(params, first, count);
    MaxPool2dParams across = p, down = p;
    across.h = {p.h.size, 1, 1, 0, 1};
    across.oh = p.h.size;
    across.y = maxima.get();
    across.where = columns.get();
    max_pool2d_forward<T, kArgmax>(across);
    down.w = {p.ow, 1, 1, 0, 1};
    down.x = maxima.get();
    down.where = row_taps.get();
    max_pool2d_forward<T, kCodes ? Argmax::kTap : Argmax::kNone>(down);
    if constexpr (kCodes) {
      place_maxima<Where, kArgmax>(p, count, line, row_taps.get(), columns.get());
    }
  }
}

inline void max_pool2d_forward(const MaxPool2dParams& p) {
  dispatch_dtype<kKernelTypes>(p.dtype, [&](auto t) {
    const auto pool = [&]<Argmax kArgmax>() {
      separable_pays(p) ? separable_forward<decltype(t), kArgmax>(p)
                        : max_pool2d_forward<decltype(t), kArgmax>(p);
    };
    switch (p.argmax) {
      case Argmax::kNone:
        return pool.template operator()<Argmax::kNone>();
      case Argmax::kTap:
        return pool.template operator()<Argmax::kTap>();
      case Argmax::kIndex:
        return pool.template operator()<Argmax::kIndex>();
    }
  });
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE

// One window after the other; the backward adds in the order of the outputs.
#include <algorithm>
#include <limits>
#include <type_traits>

#include "core/parallel.h"
#include "core/scratch.h"
#include "max_pool2d/max_pool2d_element.h"

namespace pyops {
namespace {

// The gradient of `channels` planes that lie beside each other: each output's goes to the element
// that it came from. Sums are kept in grad_x itself; those of several 16-bit numbers apart, in
// float32.
template <class T, class Where>
class ScatteredGradient {
 public:
  ScatteredGradient(const MaxPool2dBackwardParams& params, int64_t channels)
      : p_(params), columns_(p_.ow), sums_(in_place_ ? 0 : area_ * channels) {
    for (int64_t ow = 0; ow < p_.ow; ++ow) {
      const PoolWindow columns = p_.w.window(ow);
      columns_[ow] = columns.begin < columns.end ? p_.w.start(ow) : kNowhere;
    }
    const int64_t taps = std::min(kByteValues, p_.h.kernel * p_.w.kernel);
    for (int64_t tap = 0, row = 0; tap < taps; ++row) {
      for (int64_t column = 0; column < p_.w.kernel && tap < taps; ++column, ++tap) {
        tap_offsets_[tap] = row * p_.h.dilation * p_.w.size + column * p_.w.dilation;
      }
    }
  }

  void run(int64_t plane, int64_t channels) {
    const Plane in = plane_of(p_, plane, area_), out = plane_of(p_, plane, p_.oh * p_.ow);
    T* grad_x = static_cast<T*>(p_.grad_x) + in.offset;
    if (in_place_) return sum(out, grad_x, in.step, channels);
    sum(out, sums_.get(), channels, channels);
    for (int64_t i = 0; i < area_; ++i) {
      for (int64_t c = 0; c < channels; ++c) {
        grad_x[i * in.step + c] = static_cast<T>(sums_[i * channels + c]);
      }
    }
  }

 private:
  using Acc = acc_t<T>;
  static constexpr int64_t kByteValues = 256, kNowhere = std::numeric_limits<int64_t>::min();

  // `sums` of an element's channels are neighbours, of neighbouring elements `step` apart.
  template <class Sum>
  void sum(const Plane& out, Sum* sums, int64_t step, int64_t channels) const {
    const bool dense = step == channels;
    for (int64_t i = 0; i < (dense ? 1 : area_); ++i) {
      std::fill_n(sums + i * step, dense ? area_ * channels : channels, Sum(0));
    }
    for (int64_t oh = 0; oh < p_.oh; ++oh) {
      const PoolWindow rows = p_.h.window(oh);
      if (rows.begin >= rows.end) continue;
      const int64_t start = p_.h.start(oh) * p_.w.size, at = out.offset + oh * p_.ow * out.step;
      out.step == 1 ? scatter_row<true>(at, 1, start, sums, 1, 1)
                    : scatter_row<false>(at, out.step, start, sums, step, channels);
    }
  }

  // A row of outputs from `at` on, whose windows begin in the row of element `start`.
  template <bool kPlanar, class Sum>
  void scatter_row(int64_t at, int64_t out_step, int64_t start, Sum* sums, int64_t step,
                   int64_t channels) const {
    const auto* where = static_cast<const Where*>(p_.where) + at;
    const T* grad_y = static_cast<const T*>(p_.grad_y) + at;
    for (int64_t ow = 0; ow < p_.ow; ++ow, where += out_step, grad_y += out_step) {
      if (columns_[ow] == kNowhere) continue;
      for (int64_t c = 0; c < (kPlanar ? 1 : channels); ++c) {
        auto index = static_cast<int64_t>(where[c]);
        if constexpr (sizeof(Where) == 1) index = start + columns_[ow] + tap_offsets_[where[c]];
        if (index < 0 || index >= area_) continue;
        Sum& sum = sums[kPlanar ? index : index * step + c];
        sum = static_cast<Sum>(static_cast<Acc>(sum) + static_cast<Acc>(grad_y[c]));
      }
    }
  }

  const MaxPool2dBackwardParams& p_;
  const int64_t area_ = p_.h.size * p_.w.size;
  const bool in_place_ =
      std::is_same_v<T, Acc> || (p_.h.max_covering() == 1 && p_.w.max_covering() == 1);
  Scratch<int64_t> columns_;  // where windows begin, if they hold an element
  int64_t tap_offsets_[kByteValues]{};
  Scratch<Acc> sums_;
};

// f(T{}, Where{}) with the types of the elements and of the argmax.
template <class Params, class F>
void dispatch(const Params& p, F&& f) {
  dispatch_dtype(p.dtype,
                 [&](auto t) { p.argmax == Argmax::kIndex ? f(t, int64_t{}) : f(t, uint8_t{}); });
}

}  // namespace

void max_pool2d_forward_scalar(const MaxPool2dParams& p) {
  dispatch(p, [&](auto t, auto where) {
    parallel_for(0, p.n * p.c, 1, [&](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; ++plane) {
        for (int64_t o = 0; o < p.oh * p.ow; ++o) {
          pool_element<decltype(t), decltype(where)>(p, plane, o);
        }
      }
    });
  });
}

void max_pool2d_backward_scalar(const MaxPool2dBackwardParams& p) {
  dispatch(p, [&](auto t, auto where) {
    // Channels that lie beside each other share a line of memory; every thread has some.
    const int64_t share = std::min<int64_t>(p.n * p.c / num_threads(), p.c);
    const int64_t together = p.channels_last ? std::clamp<int64_t>(share, 1, 16) : 1;
    const int64_t blocks = (p.c + together - 1) / together;
    parallel_for(0, p.n * blocks, 1, [&](int64_t begin, int64_t end) {
      ScatteredGradient<decltype(t), decltype(where)> gradient(p, together);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t c = i % blocks * together;
        gradient.run(i / blocks * p.c + c, std::min(together, p.c - c));
      }
    });
  });
}

}  // namespace pyops

// Where the windows of a pooling lie along one spatial axis, as ATen's pooling_output_shape has it.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace pyops {

// What one output element reads: positions begin, begin + dilation, … < end, all inside the input.
// Empty when begin >= end: every tap lies in the padding.
template <class Int>
struct PoolWindowOf {
  Int begin, end;
  Int first_tap;  // of the kernel, the one at `begin`
};

// Outputs [begin, end) whose window spans an input position; with dilation it may still miss it.
template <class Int>
struct PoolCoveringOf {
  Int begin, end;
};

// kernel, stride, dilation >= 1; 0 <= padding <= half of the kernel's extent.
template <class Int>
struct PoolAxisOf {
  Int size;  // of the input
  Int kernel, stride, padding, dilation;

  // In ceil mode the last window may run over the right padding, but must start inside the input
  // or the left padding. Not positive when the kernel's extent exceeds the padded input.
  PYOPS_HOST_DEVICE Int output_size(bool ceil_mode) const {
    const Int room = size + 2 * padding - extent() + (ceil_mode ? stride - 1 : 0);
    const Int floored = room >= 0 ? room / stride : -((-room + stride - 1) / stride);
    const bool starts_outside = ceil_mode && floored * stride >= size + padding;
    return floored + (starts_outside ? 0 : 1);
  }

  // From the first tap to the last, both included.
  PYOPS_HOST_DEVICE Int extent() const { return dilation * (kernel - 1) + 1; }

  // Input position of the window's first tap: negative in the left padding.
  PYOPS_HOST_DEVICE Int start(Int o) const { return o * stride - padding; }

  PYOPS_HOST_DEVICE PoolWindowOf<Int> window(Int o) const {
    const Int from = start(o), to = from + extent();
    const Int skipped = from < 0 ? (-from + dilation - 1) / dilation : 0;
    return {from + skipped * dilation, to < size ? to : size, skipped};
  }

  PYOPS_HOST_DEVICE PoolCoveringOf<Int> covering(Int i, Int outputs) const {
    const Int last = i + padding, first = last - extent() + 1, end = last / stride + 1;
    return {first > 0 ? (first + stride - 1) / stride : 0, end < outputs ? end : outputs};
  }

  // Most outputs a position can be covered by.
  PYOPS_HOST_DEVICE Int max_covering() const { return (extent() - 1) / stride + 1; }

  // The kernel tap by which output o reads input position i, or -1.
  PYOPS_HOST_DEVICE Int tap_at(Int o, Int i) const {
    const Int distance = i - start(o);
    if (dilation == 1) return distance >= 0 && distance < kernel ? distance : -1;
    const bool hit = distance >= 0 && distance < extent() && distance % dilation == 0;
    return hit ? distance / dilation : -1;
  }
};

using PoolWindow = PoolWindowOf<int64_t>;
using PoolCovering = PoolCoveringOf<int64_t>;
using PoolAxis = PoolAxisOf<int64_t>;

// By 32 bits, of which a GPU divides in few instructions, an axis that fits_short().
using ShortPoolAxis = PoolAxisOf<int32_t>;

PYOPS_HOST_DEVICE inline ShortPoolAxis shortened(const PoolAxis& axis) {
  const auto part = [](int64_t value) { return static_cast<int32_t>(value); };
  return {part(axis.size), part(axis.kernel), part(axis.stride), part(axis.padding),
          part(axis.dilation)};
}
inline bool fits_short(const PoolAxis& axis) {
  constexpr int64_t kMost = 1 << 29;  // sums of two fit, too
  return axis.size <= kMost && axis.kernel <= kMost && axis.dilation <= kMost &&
         axis.extent() <= kMost && axis.stride <= kMost && axis.padding <= kMost;
}

}  // namespace pyops

// Where the windows of a pooling lie along one spatial axis, as ATen's pooling_output_shape has it.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace pyops {

// What one output element reads: positions begin, begin + dilation, … < end, all inside the input.
// Empty when begin >= end: every tap lies in the padding.
struct PoolWindow {
  int64_t begin, end;
  int64_t first_tap;  // of the kernel, the one at `begin`
};

// Outputs [begin, end) whose window spans an input position; with dilation it may still miss it.
struct PoolCovering {
  int64_t begin, end;
};

// kernel, stride, dilation >= 1; 0 <= padding <= half of the kernel's extent.
struct PoolAxis {
  int64_t size;  // of the input
  int64_t kernel, stride, padding, dilation;

  // In ceil mode the last window may run over the right padding, but must start inside the input
  // or the left padding. Not positive when the kernel's extent exceeds the padded input.
  PYOPS_HOST_DEVICE int64_t output_size(bool ceil_mode) const {
    const int64_t room = size + 2 * padding - extent() + (ceil_mode ? stride - 1 : 0);
    const int64_t floored = room >= 0 ? room / stride : -((-room + stride - 1) / stride);
    const bool starts_outside = ceil_mode && floored * stride >= size + padding;
    return floored + (starts_outside ? 0 : 1);
  }

  // From the first tap to the last, both included.
  PYOPS_HOST_DEVICE int64_t extent() const { return dilation * (kernel - 1) + 1; }

  // Input position of the window's first tap: negative in the left padding.
  PYOPS_HOST_DEVICE int64_t start(int64_t o) const { return o * stride - padding; }

  PYOPS_HOST_DEVICE PoolWindow window(int64_t o) const {
    const int64_t from = start(o), to = from + extent();
    const int64_t skipped = from < 0 ? (-from + dilation - 1) / dilation : 0;
    return {from + skipped * dilation, to < size ? to : size, skipped};
  }

  PYOPS_HOST_DEVICE PoolCovering covering(int64_t i, int64_t outputs) const {
    const int64_t last = i + padding, first = last - extent() + 1, end = last / stride + 1;
    return {first > 0 ? (first + stride - 1) / stride : 0, end < outputs ? end : outputs};
  }

  // Most outputs a position can be covered by.
  PYOPS_HOST_DEVICE int64_t max_covering() const { return (extent() - 1) / stride + 1; }

  // The kernel tap by which output o reads input position i, or -1.
  PYOPS_HOST_DEVICE int64_t tap_at(int64_t o, int64_t i) const {
    const int64_t distance = i - start(o);
    if (dilation == 1) return distance >= 0 && distance < kernel ? distance : -1;
    const bool hit = distance >= 0 && distance < extent() && distance % dilation == 0;
    return hit ? distance / dilation : -1;
  }
};

}  // namespace pyops

// The arguments of a convolution that is pooled: parsed and checked.
#pragma once

#include <algorithm>
#include <limits>

#include "conv2d/conv2d_arguments.h"

namespace pyops {

inline constexpr const char* kPooledName = "conv2d_relu_max_pool2d";

using at::IntArrayRef;

// The integer arguments, as the schema has them.
struct Sizes {
  IntArrayRef stride, padding, dilation;
  int64_t groups;
  IntArrayRef kernel_size, pool_stride, pool_padding, pool_dilation;
  bool ceil_mode;

  // An offset is a tap of the window in 32 bits. A size that needs more itself is refused.
  bool has_countable_taps() const {
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
    if (kernel_size.empty()) return true;
    const int64_t h = kernel_size.front(), w = kernel_size.back();
    return std::max(h, w) > kMost || h * w <= kMost;
  }

  Conv2dArguments convolution() const {
    return conv2d_arguments(kPooledName, stride, padding, dilation, groups);
  }
};

struct Pool {
  PoolAxis h, w;
  int64_t pooled_h, pooled_w;

  bool wide_offsets() const { return h.kernel * w.kernel > 255; }  // and kNoTap is one more
  at::ScalarType offset_type() const { return wide_offsets() ? at::kInt : at::kByte; }
};

inline Pool make_pool(const Sizes& s, const Conv2dShape& shape) {
  const Pair kernel(kPooledName, "kernel_size", s.kernel_size),
      padding(kPooledName, "pool_padding", s.pool_padding);
  const Pair stride =
      s.pool_stride.empty() ? kernel : Pair(kPooledName, "pool_stride", s.pool_stride);
  const Pair dilation(kPooledName, "pool_dilation", s.pool_dilation);
  const auto check = [](const char* name, const Pair& pair, IntArrayRef given) {
    TORCH_CHECK(pair.at_least(1), kPooledName, ": ", name, " must be at least 1, got ", given);
    TORCH_CHECK(pair.at_most(std::numeric_limits<int>::max()), kPooledName, ": ", name,
                " must fit 32 bits, got ", given);
  };
  check("kernel_size", kernel, s.kernel_size);
  check("pool_stride", stride, s.pool_stride);
  check("pool_dilation", dilation, s.pool_dilation);
  TORCH_CHECK(padding.at_least(0) && padding.h <= kernel.h / 2 && padding.w <= kernel.w / 2,
              kPooledName,
              ": pool_padding must be between 0 and half of kernel_size=", s.kernel_size, ", got ",
              s.pool_padding);
  Pool pool{{shape.oh, kernel.h, stride.h, padding.h, dilation.h},
            {shape.ow, kernel.w, stride.w, padding.w, dilation.w},
            0,
            0};
  pool.pooled_h = pool.h.output_size(s.ceil_mode);
  pool.pooled_w = pool.w.output_size(s.ceil_mode);
  TORCH_CHECK(pool.pooled_h >= 1 && pool.pooled_w >= 1, kPooledName,
              ": kernel_size must fit into the padded convolution output of ", shape.oh, "x",
              shape.ow, ", got ", s.kernel_size, " with pool_dilation=", s.pool_dilation);
  return pool;
}

}  // namespace pyops

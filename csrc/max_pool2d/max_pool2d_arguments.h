// The windows of a max_pool2d call, checked: what native refuses is refused with its exception.
#pragma once

#include <limits>

#include "core/pair.h"
#include "core/pool_window.h"

namespace pyops {

// Both axes of a call, without the input's size.
struct Windows {
  Pair kernel, stride, padding, dilation;

  Windows(at::IntArrayRef kernel_size, at::IntArrayRef stride_, at::IntArrayRef padding_,
          at::IntArrayRef dilation_)
      : kernel("max_pool2d", "kernel_size", kernel_size),
        stride(stride_.empty() ? kernel : Pair("max_pool2d", "stride", stride_)),
        padding("max_pool2d", "padding", padding_),
        dilation("max_pool2d", "dilation", dilation_) {
    const auto check = [](const char* name, const Pair& pair, int64_t least) {
      TORCH_CHECK(pair.at_least(least), "max_pool2d: ", name, " must be at least ", least,
                  ", got (", pair.h, ", ", pair.w, ")");
      TORCH_CHECK(pair.at_most(std::numeric_limits<int>::max()), "max_pool2d: ", name,
                  " must fit 32 bits, got (", pair.h, ", ", pair.w, ")");
    };
    check("kernel_size", kernel, 1);
    check("stride", stride, 1);
    check("padding", padding, 0);
    check("dilation", dilation, 1);
    TORCH_CHECK(padding.h <= kernel.h / 2 && padding.w <= kernel.w / 2,
                "max_pool2d: padding must be at most half of kernel_size (", kernel.h, ", ",
                kernel.w, "), got (", padding.h, ", ", padding.w,
                "): pad should be at most half of effective kernel size");
  }

  PoolAxis h(int64_t size) const { return {size, kernel.h, stride.h, padding.h, dilation.h}; }
  PoolAxis w(int64_t size) const { return {size, kernel.w, stride.w, padding.w, dilation.w}; }
};

// Whether a byte can name every tap.
inline bool fits_taps(const Windows& windows) { return windows.kernel.h * windows.kernel.w <= 256; }

inline void check_input(const at::Tensor& x, const Windows& windows, bool ceil_mode) {
  TORCH_CHECK(x.dim() == 3 || x.dim() == 4,
              "max_pool2d: input must be (N, C, H, W) or (C, H, W), got ", x.sym_sizes(),
              ": non-empty 3D or 4D (batch mode) tensor expected for input");
  if (x.unsafeGetTensorImpl()->has_symbolic_sizes_strides()) return;  // the fake kernel checks
  const auto sizes = x.sizes().slice(x.dim() - 3);
  TORCH_CHECK(sizes[0] != 0 && sizes[1] != 0 && sizes[2] != 0,
              "max_pool2d: input must have no empty dimension besides the batch, got ", x.sizes());
  const int64_t oh = windows.h(sizes[1]).output_size(ceil_mode);
  const int64_t ow = windows.w(sizes[2]).output_size(ceil_mode);
  TORCH_CHECK(oh >= 1 && ow >= 1, "max_pool2d: the output must have at least one element, but ",
              "input ", x.sizes(), " gives (", oh, ", ", ow, ")");
}

}  // namespace pyops

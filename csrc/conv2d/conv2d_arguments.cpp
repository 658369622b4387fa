#include "conv2d/conv2d_arguments.h"

#include <algorithm>

#include "conv2d/conv2d_tensorop.h"

namespace pyops {
namespace {

// Of what is multiplied with sizes and added to them, in 64 bits.
constexpr int64_t kMost = int64_t{1} << 40;

int64_t output_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding,
                    int64_t dilation) {
  return (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
}

}  // namespace

Conv2dArguments conv2d_arguments(const char* op, at::IntArrayRef stride, at::IntArrayRef padding,
                                 at::IntArrayRef dilation, int64_t groups) {
  const Conv2dArguments a{Pair(op, "stride", stride), Pair(op, "padding", padding),
                          Pair(op, "dilation", dilation), groups};
  TORCH_CHECK(a.stride.at_least(1), op, ": stride must be at least 1, got ", stride);
  TORCH_CHECK(a.padding.at_least(0), op, ": padding must not be negative, got ", padding);
  TORCH_CHECK(a.dilation.at_least(1), op, ": dilation must be at least 1, got ", dilation);
  TORCH_CHECK(a.padding.at_most(kMost), op, ": padding must be at most 2^40, got ", padding);
  TORCH_CHECK(a.dilation.at_most(kMost), op, ": dilation must be at most 2^40, got ", dilation);
  TORCH_CHECK(groups >= 1, op, ": groups must be at least 1, got ", groups);
  return a;
}

at::MemoryFormat conv2d_memory_format(const Tensor& x, const Tensor& w) {
  const auto last = at::MemoryFormat::ChannelsLast;
  return x.suggest_memory_format() == last || w.suggest_memory_format() == last
             ? last
             : at::MemoryFormat::Contiguous;
}

void check_conv2d(const char* op, const Tensor& x, const Tensor& w, const Tensor& bias,
                  const Conv2dArguments& a) {
  TORCH_CHECK(w.dim() == 4, op, ": weight must be (O, C/groups, kh, kw), got ", w.sym_sizes());
  TORCH_CHECK(x.dim() == 4, op, ": input must be (N, C, H, W) or (C, H, W), got ", x.sym_sizes());
  TORCH_SYM_CHECK((w.sym_size(1) * a.groups).sym_eq(x.sym_size(1)), op,
                  ": weight must be (O, C/groups, kh, kw) with C=", x.sym_size(1),
                  ", groups=", a.groups, ", got ", w.sym_sizes());
  TORCH_CHECK(w.sym_size(0) >= 1 && w.sym_size(0) % a.groups == 0, op,
              ": weight must have a positive multiple of groups=", a.groups,
              " output channels, got ", w.sym_sizes());
  TORCH_CHECK(w.sym_size(2) >= 1 && w.sym_size(3) >= 1, op,
              ": weight must have a kernel of at least 1x1, got ", w.sym_sizes());
  check_same_kind(op, "weight", w, x);
  if (bias.defined()) {
    TORCH_CHECK(bias.dim() == 1 && bias.sym_size(0) == w.sym_size(0), op,
                ": bias must be (O) with O=", w.sym_size(0), ", got ", bias.sym_sizes());
    check_same_kind(op, "bias", bias, x);
  }
  const c10::SymInt extent_h = a.dilation.h * (w.sym_size(2) - 1) + 1;
  const c10::SymInt extent_w = a.dilation.w * (w.sym_size(3) - 1) + 1;
  const c10::SymInt padded_h = x.sym_size(2) + 2 * a.padding.h;
  const c10::SymInt padded_w = x.sym_size(3) + 2 * a.padding.w;
  TORCH_SYM_CHECK(padded_h.sym_ge(extent_h).sym_and(padded_w.sym_ge(extent_w)), op,
                  ": weight with dilation covers ", extent_h, "x", extent_w,
                  ", more than the padded input of ", padded_h, "x", padded_w);
}

Conv2dShape conv2d_shape(const char* op, const Tensor& x, const Tensor& w, const Tensor& bias,
                         const Conv2dArguments& a) {
  check_conv2d(op, x, w, bias, a);
  Conv2dShape shape{.n = x.size(0),
                    .c = x.size(1),
                    .h = x.size(2),
                    .w = x.size(3),
                    .o = w.size(0),
                    .kh = w.size(2),
                    .kw = w.size(3),
                    .oh = output_size(x.size(2), w.size(2), a.stride.h, a.padding.h, a.dilation.h),
                    .ow = output_size(x.size(3), w.size(3), a.stride.w, a.padding.w, a.dilation.w),
                    .groups = a.groups,
                    // More than the padded input has one output, as this has, and would overflow.
                    .stride_h = std::min(a.stride.h, x.size(2) + 2 * a.padding.h),
                    .stride_w = std::min(a.stride.w, x.size(3) + 2 * a.padding.w),
                    .padding_h = a.padding.h,
                    .padding_w = a.padding.w,
                    .dilation_h = a.dilation.h,
                    .dilation_w = a.dilation.w,
                    .channels_last = true};
  shape.channels_last = conv2d_memory_format(x, w) == at::MemoryFormat::ChannelsLast ||
                        (x.is_cuda() && suits_tensorop(shape, dtype_of(x), {}));
  return shape;
}

bool is_empty(const char* op, const Tensor& x, const Tensor& w) {
  const auto has_elements = [](const Tensor& t) {  // a symbolic size stands for two or more
    return t.unsafeGetTensorImpl()->has_symbolic_sizes_strides() || t.numel() > 0;
  };
  if (has_elements(x) && has_elements(w)) return false;
  note_native(op, {x, w}, "empty");
  return true;
}

std::pair<Tensor, std::array<int64_t, 2>> resolve_padding(const char* op, const Tensor& x,
                                                          const Tensor& w, at::IntArrayRef stride,
                                                          std::string_view padding,
                                                          at::IntArrayRef dilation) {
  if (padding == "valid") return {x, {0, 0}};
  TORCH_CHECK(padding == "same", op, ": padding must be an integer, two, 'same' or 'valid', got '",
              padding, "'");
  const Pair step(op, "stride", stride), spread(op, "dilation", dilation);
  TORCH_CHECK(step.h == 1 && step.w == 1, op, ": stride must be 1 with padding='same', got ",
              stride);
  TORCH_CHECK(w.dim() == 4, op, ": weight must be (O, C/groups, kh, kw), got ", w.sizes());
  const int64_t total_h = spread.h * (w.size(2) - 1), total_w = spread.w * (w.size(3) - 1);
  const std::array<int64_t, 2> both{total_h / 2, total_w / 2};
  if (total_h % 2 == 0 && total_w % 2 == 0) return {x, both};
  return {at::constant_pad_nd(x, {0, total_w % 2, 0, total_h % 2}), both};
}

}  // namespace pyops

#include "max_pool2d/max_pool2d.h"

#include "core/autograd.h"
#include "core/named.h"
#include "max_pool2d/max_pool2d_arguments.h"
#include "max_pool2d/max_pool2d_lanes.h"
#include "max_pool2d/max_pool2d_window.h"

namespace pyops {
namespace {

constexpr Candidate<MaxPool2dParams> kForward[] = {
#ifdef PYOPS_CUDA
    {"max_pool2d_forward_channels_cuda", Arch::kSm80, kTileTypes, max_pool2d_forward_channels_cuda,
     suits_channels, kSuitsChannels},
    {"max_pool2d_forward_strips_cuda", Arch::kSm80, kTileTypes, max_pool2d_forward_strips_cuda,
     suits_strips, kSuitsStrips},
    {"max_pool2d_forward_teams_cuda", Arch::kSm80, kAnyFloat, max_pool2d_forward_teams_cuda,
     suits_teams, kSuitsTeams},
    {"max_pool2d_forward_windows_cuda", Arch::kSm80, kAnyFloat, max_pool2d_forward_windows_cuda,
     suits_windows<MaxPool2dParams>, kSuitsWindows},
    {"max_pool2d_forward_cuda", Arch::kSm80, kAnyFloat, max_pool2d_forward_cuda},
#endif
    {"max_pool2d_forward_avx512", Isa::kAvx512, kAnyFloat, max_pool2d_forward_avx512, fills_lanes,
     kFillsLanes},
    {"max_pool2d_forward_avx2", Isa::kAvx2, kAnyFloat, max_pool2d_forward_avx2, fills_lanes,
     kFillsLanes},
    {"max_pool2d_forward_scalar", Isa::kScalar, kAnyFloat, max_pool2d_forward_scalar},
};
constexpr Candidate<MaxPool2dBackwardParams> kBackward[] = {
#ifdef PYOPS_CUDA
    {"max_pool2d_backward_channels_cuda", Arch::kSm80, kTileTypes,
     max_pool2d_backward_channels_cuda, suits_channels, kSuitsChannels},
    {"max_pool2d_backward_strips_cuda", Arch::kSm80, kTileTypes, max_pool2d_backward_strips_cuda,
     suits_strips, kSuitsStrips},
    {"max_pool2d_backward_windows_cuda", Arch::kSm80, kAnyFloat, max_pool2d_backward_windows_cuda,
     suits_windows<MaxPool2dBackwardParams>, kSuitsWindows},
    {"max_pool2d_backward_cuda", Arch::kSm80, kAnyFloat, max_pool2d_backward_cuda},
#endif
    {"max_pool2d_backward_avx512", Isa::kAvx512, kTileTypes, max_pool2d_backward_avx512,
     suits_gather<16>, kSuitsGather},
    {"max_pool2d_backward_avx2", Isa::kAvx2, kTileTypes, max_pool2d_backward_avx2, suits_gather<8>,
     kSuitsGather},
    {"max_pool2d_backward_scalar", Isa::kScalar, kAnyFloat, max_pool2d_backward_scalar},
};
[[maybe_unused]] const bool listed =
    list_table("max_pool2d_forward", kForward) && list_table("max_pool2d_backward", kBackward);
constexpr Devices kDevices = devices_of(kForward);

using at::IntArrayRef;
using TensorPair = std::tuple<Tensor, Tensor>;

bool is_channels_last(const Tensor& x) {
  return x.dim() == 4 && x.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
}
at::MemoryFormat format_of(bool channels_last) {
  return channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

TensorPair native(Argmax argmax, const Tensor& x, IntArrayRef kernel, IntArrayRef stride,
                  IntArrayRef padding, IntArrayRef dilation, bool ceil_mode) {
  TORCH_CHECK_NOT_IMPLEMENTED(argmax != Argmax::kTap,
                              "max_pool2d_with_taps: PyTorch has no such operator");
  return named("max_pool2d", {x}, [&]() -> TensorPair {
    if (argmax == Argmax::kIndex) {
      return at::max_pool2d_with_indices(x, kernel, stride, padding, dilation, ceil_mode);
    }
    return {at::max_pool2d(x, kernel, stride, padding, dilation, ceil_mode), Tensor()};
  });
}

const char* name_of(Argmax argmax) {
  if (argmax == Argmax::kNone) return "max_pool2d";
  return argmax == Argmax::kTap ? "max_pool2d_with_taps" : "max_pool2d_with_indices";
}

// Decides again what the autograd kernel decided: inference mode comes straight here.
TensorPair forward(Argmax argmax, const Tensor& x, IntArrayRef kernel, IntArrayRef stride,
                   IntArrayRef padding, IntArrayRef dilation, bool ceil_mode) {
  if (goes_native(name_of(argmax), {x}, kDevices)) {
    return native(argmax, x, kernel, stride, padding, dilation, ceil_mode);
  }
  const Windows windows(kernel, stride, padding, dilation);
  check_input(x, windows, ceil_mode);
  TORCH_CHECK(argmax != Argmax::kTap || fits_taps(windows),
              "max_pool2d_with_taps: kernel_size must have at most 256 taps, got (",
              windows.kernel.h, ", ", windows.kernel.w, ")");
  const auto format = format_of(is_channels_last(x));
  const Tensor xc = x.contiguous(format);
  MaxPool2dParams params{.dtype = dtype_of(x),
                         .argmax = argmax,
                         .channels_last = format == at::MemoryFormat::ChannelsLast,
                         .n = x.dim() == 4 ? x.size(0) : 1,
                         .c = x.size(-3),
                         .h = windows.h(x.size(-2)),
                         .w = windows.w(x.size(-1)),
                         .oh = 0,
                         .ow = 0,
                         .x = xc.const_data_ptr(),
                         .y = nullptr,
                         .where = nullptr};
  params.oh = params.h.output_size(ceil_mode);
  params.ow = params.w.output_size(ceil_mode);
  c10::SmallVector<int64_t, 4> shape(x.sizes());
  shape[x.dim() - 2] = params.oh;
  shape[x.dim() - 1] = params.ow;
  const Tensor y = at::empty(shape, x.options(), format);
  const auto options = x.options().dtype(argmax == Argmax::kTap ? at::kByte : at::kLong);
  const Tensor where = argmax == Argmax::kNone ? Tensor() : at::empty(shape, options, format);
  params.y = y.mutable_data_ptr();
  params.where = where.defined() ? where.mutable_data_ptr() : nullptr;
  if (y.numel() != 0) serve("max_pool2d", kForward, params, {x});
  return {y, where};
}

Tensor max_pool2d(const Tensor& x, IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding,
                  IntArrayRef dilation, bool ceil_mode) {
  return std::get<0>(forward(Argmax::kNone, x, kernel, stride, padding, dilation, ceil_mode));
}

template <Argmax kArgmax>
TensorPair max_pool2d_with_argmax(const Tensor& x, IntArrayRef kernel, IntArrayRef stride,
                                  IntArrayRef padding, IntArrayRef dilation, bool ceil_mode) {
  return forward(kArgmax, x, kernel, stride, padding, dilation, ceil_mode);
}

Tensor max_pool2d_backward(const Tensor& grad, const Tensor& where, IntArrayRef input_size,
                           IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding,
                           IntArrayRef dilation, bool channels_last) {
  const auto format = format_of(channels_last);
  const Windows windows(kernel, stride, padding, dilation);
  TORCH_CHECK(where.sizes() == grad.sizes(), "max_pool2d_backward: argmax must have grad's shape ",
              grad.sizes(), ", got ", where.sizes());
  TORCH_CHECK(where.scalar_type() == at::kByte || where.scalar_type() == at::kLong,
              "max_pool2d_backward: argmax must be taps (uint8) or indices (int64), got ",
              where.scalar_type());
  TORCH_CHECK(grad.dim() == 4 || (grad.dim() == 3 && !channels_last), "max_pool2d_backward: grad ",
              "must be (N, C, OH, OW) or, not channels_last, (C, OH, OW), got ", grad.sizes());
  const auto is_pooled = [&](const PoolAxis& axis, int64_t size) {
    return size == axis.output_size(false) || size == axis.output_size(true);
  };
  TORCH_CHECK(input_size.size() == 2 && is_pooled(windows.h(input_size[0]), grad.size(-2)) &&
                  is_pooled(windows.w(input_size[1]), grad.size(-1)),
              "max_pool2d_backward: input_size must be (H, W) of which the windows make grad's ",
              grad.sizes(), ", got ", input_size);
  c10::SmallVector<int64_t, 4> shape(grad.sizes());
  shape[grad.dim() - 2] = input_size[0];
  shape[grad.dim() - 1] = input_size[1];
  const Tensor g = grad.contiguous(format), wc = where.contiguous(format);
  const Tensor grad_x = at::empty(shape, grad.options(), format);
  const MaxPool2dBackwardParams params{
      .dtype = dtype_of(grad),
      .argmax = where.scalar_type() == at::kByte ? Argmax::kTap : Argmax::kIndex,
      .channels_last = channels_last,
      .n = grad.dim() == 4 ? grad.size(0) : 1,
      .c = grad.size(-3),
      .h = windows.h(input_size[0]),
      .w = windows.w(input_size[1]),
      .oh = grad.size(-2),
      .ow = grad.size(-1),
      .grad_y = g.const_data_ptr(),
      .where = wc.const_data_ptr(),
      .grad_x = grad_x.mutable_data_ptr()};
  if (grad_x.numel() != 0) serve("max_pool2d_backward", kBackward, params, {grad, where});
  return grad_x;
}

Tensor call_forward(const Tensor& x, IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding,
                    IntArrayRef dilation, bool ceil_mode) {
  static const auto op = find_op<decltype(max_pool2d)>("max_pool2d");
  const at::AutoDispatchBelowADInplaceOrView below;
  return op.call(x, kernel, stride, padding, dilation, ceil_mode);
}

template <Argmax kArgmax>
TensorPair call_forward_with_argmax(const Tensor& x, IntArrayRef kernel, IntArrayRef stride,
                                    IntArrayRef padding, IntArrayRef dilation, bool ceil_mode) {
  static const auto op = find_op<decltype(max_pool2d_with_argmax<kArgmax>)>(name_of(kArgmax));
  const Unrecorded scope;
  return op.call(x, kernel, stride, padding, dilation, ceil_mode);
}

// Input position of the first tap of every window along one axis, whose length is `like`'s `dim`.
Tensor window_starts(const Tensor& like, int64_t dim, int64_t stride, int64_t padding) {
  const auto count = at::arange(like.sym_size(dim), like.options().dtype(at::kLong));
  return (dim == -2 ? count.unsqueeze(-1) : count) * stride - padding;
}

// Whether the windows hold an element, or lie in the padding alone as dilation makes possible.
Tensor windows_inside(const Tensor& starts, const PoolAxis& axis, const c10::SymInt& size) {
  const Tensor begin = at::where(starts < 0, starts.remainder(axis.dilation), starts);
  return (begin < starts + axis.extent()).logical_and(begin < size);
}

// The same gradient as differentiable operations: a sum scattered to the saved positions.
Tensor differentiable_backward(const Tensor& grad, const Tensor& where,
                               c10::SymIntArrayRef input_size, const Windows& windows,
                               bool channels_last) {
  const PoolAxis h = windows.h(0), w = windows.w(0);
  const c10::SymInt &height = input_size[0], &width = input_size[1];
  const Tensor rows = window_starts(where, -2, h.stride, h.padding);
  const Tensor columns = window_starts(where, -1, w.stride, w.padding);
  const Tensor inside =
      windows_inside(rows, h, height).logical_and(windows_inside(columns, w, width));
  Tensor index = where.to(at::kLong);
  if (where.scalar_type() == at::kByte) {
    const Tensor row = rows + index.floor_divide(w.kernel) * h.dilation;
    index = row * width + columns + index.remainder(w.kernel) * w.dilation;
  }
  auto shape = grad.sym_sizes().vec();
  shape[shape.size() - 2] = height;
  shape[shape.size() - 1] = width;
  const Tensor planes = at::zeros_symint(shape, grad.options()).flatten(-2);
  const Tensor grad_x =
      planes.scatter_add(-1, index.where(inside, 0).flatten(-2), grad.where(inside, 0).flatten(-2));
  return grad_x.view_symint(shape).contiguous(format_of(channels_last));
}

Tensor call_backward(const Tensor& grad, const Tensor& where, c10::SymIntArrayRef input_size,
                     IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding,
                     IntArrayRef dilation, bool channels_last) {
  static const auto op =
      find_op<Tensor(const Tensor&, const Tensor&, c10::SymIntArrayRef, IntArrayRef, IntArrayRef,
                     IntArrayRef, IntArrayRef, bool)>("max_pool2d_backward");
  return op.call(grad, where, input_size, kernel, stride, padding, dilation, channels_last);
}

Tensor max_pool2d_backward_autograd(const Tensor& grad, const Tensor& where,
                                    c10::SymIntArrayRef input_size, IntArrayRef kernel,
                                    IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                                    bool channels_last) {
  if (native_reason({grad}, kDevices) != nullptr || needs_grad({grad})) {
    return differentiable_backward(grad, where, input_size, {kernel, stride, padding, dilation},
                                   channels_last);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_backward(grad, where, input_size, kernel, stride, padding, dilation, channels_last);
}

variable_list input_gradient(const RecordedCall& call) {
  const auto numbers = integers_of<8>(call.values);
  const IntArrayRef windows(numbers);
  const c10::SymInt input_size[] = {call.values[8].toSymInt(), call.values[9].toSymInt()};
  return {call_backward(call.grads[0], call.saved[0], input_size, windows.slice(0, 2),
                        windows.slice(2, 2), windows.slice(4, 2), windows.slice(6, 2),
                        /*channels_last=*/call.values[10].toBool())};
}
constexpr Gradient kGradient{"MaxPool2dBackward", input_gradient};

template <Argmax kArgmax>
TensorPair record_forward(const Tensor& x, IntArrayRef kernel, IntArrayRef stride,
                          IntArrayRef padding, IntArrayRef dilation, bool ceil_mode) {
  const auto results =
      call_forward_with_argmax<kArgmax>(x, kernel, stride, padding, dilation, ceil_mode);
  const auto& [y, where] = results;
  const Windows w(kernel, stride, padding, dilation);
  record(kGradient, {x}, {y}, {where},
         {w.kernel.h, w.kernel.w, w.stride.h, w.stride.w, w.padding.h, w.padding.w, w.dilation.h,
          w.dilation.w, x.sym_size(-2), x.sym_size(-1), is_channels_last(x)});
  return results;
}

template <Argmax kArgmax>
TensorPair max_pool2d_with_argmax_autograd(const Tensor& x, IntArrayRef kernel, IntArrayRef stride,
                                           IntArrayRef padding, IntArrayRef dilation,
                                           bool ceil_mode) {
  if (goes_native(name_of(kArgmax), {x}, kDevices)) {
    return native(kArgmax, x, kernel, stride, padding, dilation, ceil_mode);
  }
  check_input(x, {kernel, stride, padding, dilation}, ceil_mode);
  if (!needs_grad({x})) {
    return call_forward_with_argmax<kArgmax>(x, kernel, stride, padding, dilation, ceil_mode);
  }
  return record_forward<kArgmax>(x, kernel, stride, padding, dilation, ceil_mode);
}

Tensor max_pool2d_autograd(const Tensor& x, IntArrayRef kernel, IntArrayRef stride,
                           IntArrayRef padding, IntArrayRef dilation, bool ceil_mode) {
  if (goes_native("max_pool2d", {x}, kDevices)) {
    return std::get<0>(native(Argmax::kNone, x, kernel, stride, padding, dilation, ceil_mode));
  }
  const Windows windows(kernel, stride, padding, dilation);
  check_input(x, windows, ceil_mode);
  if (!needs_grad({x})) return call_forward(x, kernel, stride, padding, dilation, ceil_mode);
  const auto recorded =
      fits_taps(windows) ? record_forward<Argmax::kTap> : record_forward<Argmax::kIndex>;
  return std::get<0>(recorded(x, kernel, stride, padding, dilation, ceil_mode));
}

// On every device that the tables serve.
void implement(torch::Library& m) {
  register_kernel<"max_pool2d", max_pool2d>(m);
  register_kernel<"max_pool2d_with_indices", max_pool2d_with_argmax<Argmax::kIndex>, "max_pool2d">(
      m);
  register_kernel<"max_pool2d_with_taps", max_pool2d_with_argmax<Argmax::kTap>, "max_pool2d">(m);
  register_kernel<"max_pool2d_backward", max_pool2d_backward>(m);
}

void implement_native(torch::Library& m) {
  m.impl("max_pool2d", TORCH_FN(at::max_pool2d));
  m.impl("max_pool2d_with_indices", TORCH_FN(at::max_pool2d_with_indices));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pyops, m) {
  const std::string arguments =
      "(Tensor input, int[2] kernel_size, int[2] stride=[], int[2] padding=0, "
      "int[2] dilation=1, bool ceil_mode=False) -> ";
  m.def(("max_pool2d" + arguments + "Tensor").c_str());
  m.def(("max_pool2d_with_indices" + arguments + "(Tensor, Tensor)").c_str());
  m.def(("max_pool2d_with_taps" + arguments + "(Tensor, Tensor)").c_str());
  m.def(
      "max_pool2d_backward(Tensor grad, Tensor argmax, SymInt[2] input_size, int[2] kernel_size, "
      "int[2] stride, int[2] padding, int[2] dilation, bool channels_last) -> Tensor");
}
TORCH_LIBRARY_IMPL(pyops, CPU, m) { implement(m); }
TORCH_LIBRARY_IMPL(pyops, CUDA, m) {
  if (kDevices == Devices::kCpuAndGpu) implement(m);
}
TORCH_LIBRARY_IMPL(pyops, Autograd, m) {
  m.impl("max_pool2d", max_pool2d_autograd);
  m.impl("max_pool2d_with_indices", max_pool2d_with_argmax_autograd<Argmax::kIndex>);
  m.impl("max_pool2d_with_taps", max_pool2d_with_argmax_autograd<Argmax::kTap>);
  m.impl("max_pool2d_backward", max_pool2d_backward_autograd);
}
// Devices and layouts without kernels of ours, where autograd does not look (inference mode).
TORCH_LIBRARY_IMPL(pyops, CompositeExplicitAutograd, m) { implement_native(m); }
TORCH_LIBRARY_IMPL(pyops, CompositeImplicitAutogradNestedTensor, m) { implement_native(m); }
TORCH_LIBRARY_IMPL(pyops, PythonTLSSnapshot, m) {
  register_for_subclasses(m, {"max_pool2d", "max_pool2d_with_indices"});
}
// They ask goes_native(), which says why in the explain() log.
TORCH_LIBRARY_IMPL(pyops, FuncTorchBatched, m) {
  m.impl("max_pool2d", max_pool2d);
  m.impl("max_pool2d_with_indices", max_pool2d_with_argmax<Argmax::kIndex>);
}

}  // namespace pyops

#include "conv2d/conv2d.h"

#include "conv2d/conv2d_arguments.h"
#include "conv2d/conv2d_sm90.h"
#include "conv2d/conv2d_workspace.h"
#include "core/autograd.h"
#include "core/named.h"

namespace pyops {
namespace {

constexpr Candidate<Conv2dParams> kForward[] = {
#ifdef PYOPS_CUDA
    {"conv2d_forward_sm90", Arch::kSm90, kHalfTypes, conv2d_forward_sm90, suits_sm90, kSuitsSm90},
    {"conv2d_forward_tensorop_cuda", Arch::kSm80, kHalfTypes, conv2d_forward_tensorop_cuda,
     suits_tensorop, kSuitsTensorop},
    {"conv2d_forward_tf32_cuda", Arch::kSm80, kFloat32, conv2d_forward_tf32_cuda,
     suits_tf32<Conv2dParams>, kSuitsTf32},
    {"conv2d_forward_3xtf32_cuda", Arch::kSm80, kFloat32, conv2d_forward_3xtf32_cuda,
     suits_tensorop, kSuitsTensorop},
    {"conv2d_forward_depthwise_cuda", Arch::kSm80, kAnyFloat, conv2d_forward_depthwise_cuda,
     has_single_channels, kHasSingleChannels},
    {"conv2d_forward_cuda", Arch::kSm80, kAnyFloat, conv2d_forward_cuda},
#endif
    {"conv2d_forward_amx", Isa::kAmx, kTileTypes, conv2d_forward_amx},
    {"conv2d_forward_avx512_bf16", Isa::kAvx512Bf16, kBFloat16, conv2d_forward_avx512_bf16},
    {"conv2d_forward_avx512", Isa::kAvx512, kAnyFloat, conv2d_forward_avx512},
    {"conv2d_forward_avx2", Isa::kAvx2, kAnyFloat, conv2d_forward_avx2},
    {"conv2d_forward_scalar", Isa::kScalar, kAnyFloat, conv2d_forward_scalar},
};
constexpr Candidate<Conv2dBackwardParams> kBackward[] = {
#ifdef PYOPS_CUDA
    {"conv2d_backward_sm90", Arch::kSm90, kHalfTypes, conv2d_backward_sm90, suits_sm90, kSuitsSm90,
     conv2d_backward_workspace_sm90},
    {"conv2d_backward_tensorop_cuda", Arch::kSm80, kHalfTypes, conv2d_backward_tensorop_cuda,
     suits_tensorop, kSuitsTensoropBackward, conv2d_backward_workspace_tensorop},
    {"conv2d_backward_tf32_cuda", Arch::kSm80, kFloat32, conv2d_backward_tf32_cuda,
     suits_tf32<Conv2dBackwardParams>, kSuitsTf32Backward, conv2d_backward_workspace_tensorop},
    {"conv2d_backward_3xtf32_cuda", Arch::kSm80, kFloat32, conv2d_backward_3xtf32_cuda,
     suits_tensorop, kSuitsTensoropBackward, conv2d_backward_workspace_tensorop},
    {"conv2d_backward_depthwise_cuda", Arch::kSm80, kAnyFloat, conv2d_backward_depthwise_cuda,
     has_single_channels, kHasSingleChannels, conv2d_backward_workspace_depthwise},
    {"conv2d_backward_cuda", Arch::kSm80, kAnyFloat, conv2d_backward_cuda, nullptr, "",
     conv2d_backward_workspace},
#endif
    {"conv2d_backward_amx", Isa::kAmx, kTileTypes, conv2d_backward_amx},
    {"conv2d_backward_avx512_bf16", Isa::kAvx512Bf16, kBFloat16, conv2d_backward_avx512_bf16},
    {"conv2d_backward_avx512", Isa::kAvx512, kAnyFloat, conv2d_backward_avx512},
    {"conv2d_backward_avx2", Isa::kAvx2, kAnyFloat, conv2d_backward_avx2},
    {"conv2d_backward_scalar", Isa::kScalar, kAnyFloat, conv2d_backward_scalar},
};
[[maybe_unused]] const bool listed =
    list_table("conv2d_forward", kForward) && list_table("conv2d_backward", kBackward);
constexpr Devices kDevices = devices_of(kForward);

using at::IntArrayRef;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

template <bool kRelu>
constexpr const char* kName = kRelu ? "conv2d_relu" : "conv2d";

template <bool kRelu>
Tensor conv2d_native(const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                     IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                     int64_t groups) {
  return named(kName<kRelu>, {x, w, bias}, [&] {
    const Tensor y = at::conv2d(x, w, bias, stride, padding, dilation, groups);
    return kRelu ? at::relu(y) : y;
  });
}

template <bool kRelu>
Tensor conv2d_kernel(const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                     IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                     int64_t groups) {
  if (x.dim() == 3) {
    return conv2d_kernel<kRelu>(x.unsqueeze(0), w, bias, stride, padding, dilation, groups)
        .squeeze(0);
  }
  const Tensor b = value_or_undefined(bias);
  if (goes_native(kName<kRelu>, {x, w, b}, kDevices) || is_empty(kName<kRelu>, x, w)) {
    return conv2d_native<kRelu>(x, w, bias, stride, padding, dilation, groups);
  }
  const auto arguments = conv2d_arguments(kName<kRelu>, stride, padding, dilation, groups);
  const Conv2dShape shape = conv2d_shape(kName<kRelu>, x, w, b, arguments);
  const auto format = kernel_format(shape);
  const Tensor xc = x.contiguous(format), wc = w.contiguous(format);
  const Tensor bc = b.defined() ? b.contiguous() : b;
  Tensor y = at::empty({shape.n, shape.o, shape.oh, shape.ow}, x.options(), format);
  const Conv2dParams params{shape,
                            dtype_of(x),
                            float32_precision(at::Float32Op::CONV, x),
                            kRelu,
                            xc.const_data_ptr(),
                            wc.const_data_ptr(),
                            b.defined() ? bc.const_data_ptr() : nullptr,
                            y.mutable_data_ptr()};
  serve(kName<kRelu>, kForward, params, {x, w, b});
  return from_kernel(y, shape, conv2d_memory_format(x, w));
}

Gradients conv2d_backward_kernel(const Tensor& grad, const Tensor& x, const Tensor& w,
                                 const OptionalTensor& relu_output, IntArrayRef stride,
                                 IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                                 std::array<bool, 3> wanted) {
  const char* op = "conv2d_backward";
  const Conv2dShape shape =
      conv2d_shape(op, x, w, Tensor(), conv2d_arguments(op, stride, padding, dilation, groups));
  const std::array<int64_t, 4> of_y{shape.n, shape.o, shape.oh, shape.ow};
  const auto check = [&](const char* name, const Tensor& t) {
    TORCH_CHECK(t.sizes() == IntArrayRef(of_y), op, ": ", name, " must have the output's shape ",
                IntArrayRef(of_y), ", got ", t.sizes());
    check_same_kind(op, name, t, x);
  };
  check("grad", grad);
  if (relu_output) check("relu_output", *relu_output);
  const auto format = kernel_format(shape);
  const Tensor g = grad.contiguous(format), xc = x.contiguous(format), wc = w.contiguous(format);
  const Tensor y = relu_output ? relu_output->contiguous(format) : Tensor();
  const auto make = [&](bool want, const Tensor& like) {
    return want ? at::empty(like.sizes(), like.options(), format) : Tensor();
  };
  const Tensor grad_x = make(wanted[0], x), grad_w = make(wanted[1], w);
  const Tensor grad_bias = wanted[2] ? at::empty({shape.o}, w.options()) : Tensor();
  const auto data = [](const Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; };
  const Conv2dBackwardParams params{shape,
                                    dtype_of(x),
                                    float32_precision(at::Float32Op::CONV, x),
                                    g.const_data_ptr(),
                                    y.defined() ? y.const_data_ptr() : nullptr,
                                    xc.const_data_ptr(),
                                    wc.const_data_ptr(),
                                    data(grad_x),
                                    data(grad_w),
                                    data(grad_bias)};
  if (grad.numel() != 0) {
    serve(op, kBackward, params, {grad, x, w});
  } else {  // sums over no image
    for (const Tensor& t : {grad_w, grad_bias}) {
      if (t.defined()) t.zero_();
    }
  }
  const auto like = conv2d_memory_format(x, w);
  return {from_kernel(grad_x, shape, like), from_kernel(grad_w, shape, like), grad_bias};
}

}  // namespace

Gradients conv2d_backward(const Tensor& grad, const Tensor& x, const Tensor& w,
                          const OptionalTensor& relu_output, IntArrayRef stride,
                          IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                          std::array<bool, 3> wanted) {
  static const auto op = find_op<decltype(conv2d_backward_kernel)>("conv2d_backward");
  return op.call(grad, x, w, relu_output, stride, padding, dilation, groups, wanted);
}

namespace {

// The same gradients as differentiable operations. The mask is a constant: ReLU has no curvature.
Gradients conv2d_backward_autograd(const Tensor& grad, const Tensor& x, const Tensor& w,
                                   const OptionalTensor& relu_output, IntArrayRef stride,
                                   IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                                   std::array<bool, 3> wanted) {
  if (native_reason({grad, x, w}, kDevices) != nullptr || needs_grad({grad, x, w})) {
    const Tensor masked =
        relu_output ? at::threshold_backward(grad, relu_output->detach(), 0) : grad;
    return at::convolution_backward_symint(
        masked, x, w, c10::SymIntArrayRef({w.sym_size(0)}), c10::fromIntArrayRefSlow(stride),
        c10::fromIntArrayRefSlow(padding), c10::fromIntArrayRefSlow(dilation),
        /*transposed=*/false, c10::fromIntArrayRefSlow({0, 0}), groups, wanted);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return conv2d_backward(grad, x, w, relu_output, stride, padding, dilation, groups, wanted);
}

template <bool kRelu>
Tensor call_forward(const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                    IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups) {
  static const auto op = find_op<decltype(conv2d_kernel<kRelu>)>(kName<kRelu>);
  const Unrecorded scope;
  return op.call(x, w, bias, stride, padding, dilation, groups);
}

// What of one image has no dimension of batch gets one.
Tensor as_batch(const Tensor& t) { return t.defined() && t.dim() == 3 ? t.unsqueeze(0) : t; }

variable_list input_gradients(const RecordedCall& call) {
  const auto numbers = integers_of<7>(call.values);
  const IntArrayRef arguments(numbers);
  const auto& saved = call.saved;
  auto [grad_x, grad_w, grad_bias] = conv2d_backward(
      as_batch(call.grads[0]), saved[0], saved[1], value_if_defined(as_batch(saved[2])),
      arguments.slice(0, 2), arguments.slice(2, 2), arguments.slice(4, 2), arguments[6],
      {call.wanted[0], call.wanted[1], call.wanted[2]});
  return {grad_x, grad_w, grad_bias};
}
template <bool kRelu>
constexpr Gradient kGradient{kRelu ? "Conv2dReluBackward" : "Conv2dBackward", input_gradients};

template <bool kRelu>
Tensor conv2d_autograd(const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                       IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                       int64_t groups) {
  if (goes_native(kName<kRelu>, {x, w, bias}, kDevices) || is_empty(kName<kRelu>, x, w)) {
    return conv2d_native<kRelu>(x, w, bias, stride, padding, dilation, groups);
  }
  check_same_kind(kName<kRelu>, "weight", w, x);
  if (bias) check_same_kind(kName<kRelu>, "bias", *bias, x);
  const Tensor batch = as_batch(x);
  if (is_abstract(x)) {
    check_conv2d(kName<kRelu>, batch, w, value_or_undefined(bias),
                 conv2d_arguments(kName<kRelu>, stride, padding, dilation, groups));
  }
  // Of one image too the result is, as native's ReLU, no view that could not be detached in place.
  const Tensor y = call_forward<kRelu>(x, w, bias, stride, padding, dilation, groups);
  if (needs_grad({x, w, bias})) {
    const Pair s(kName<kRelu>, "stride", stride), p(kName<kRelu>, "padding", padding),
        d(kName<kRelu>, "dilation", dilation);
    record(kGradient<kRelu>, {batch, w, bias}, {y}, {batch, w, kRelu ? y : Tensor()},
           {s.h, s.w, p.h, p.w, d.h, d.w, groups});
  }
  return y;
}

// The kernel below for the schema's symbolic integers.
template <auto kKernel>
Tensor guarded(const Tensor& x, const Tensor& w, const OptionalTensor& bias,
               c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
               c10::SymIntArrayRef dilation, c10::SymInt groups) {
  return kKernel(x, w, bias, guard(stride), guard(padding), guard(dilation), guard(groups));
}

// padding="same" or "valid".
template <bool kRelu>
Tensor conv2d_padding(const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                      c10::SymIntArrayRef stride, std::string_view padding,
                      c10::SymIntArrayRef dilation, c10::SymInt groups) {
  static const auto op = find_op<decltype(guarded<conv2d_autograd<kRelu>>)>(kName<kRelu>);
  const auto [padded, both] =
      resolve_padding(kName<kRelu>, x, w, guard(stride), padding, guard(dilation));
  const c10::SymInt symbols[] = {both[0], both[1]};
  return op.call(padded, w, bias, stride, symbols, dilation, groups);
}

// On every device that the tables serve.
void implement(torch::Library& m) {
  register_kernel<"conv2d", conv2d_kernel<false>>(m);
  register_kernel<"conv2d_relu", conv2d_kernel<true>>(m);
  register_kernel<"conv2d_backward", conv2d_backward_kernel>(m);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pyops, m) {
  for (const std::string op : {"conv2d", "conv2d_relu"}) {
    const std::string both = op +
                             "(Tensor input, Tensor weight, Tensor? bias=None, SymInt[2] stride=1, "
                             "SymInt[2] padding=0, SymInt[2] dilation=1, SymInt groups=1) "
                             "-> Tensor";
    const std::string named = op +
                              ".padding(Tensor input, Tensor weight, Tensor? bias=None, "
                              "SymInt[2] stride=1, str padding=\"valid\", SymInt[2] dilation=1, "
                              "SymInt groups=1) -> Tensor";
    m.def(both.c_str());
    m.def(named.c_str());
  }
  m.def(
      "conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor? relu_output, "
      "int[2] stride, int[2] padding, int[2] dilation, int groups, bool[3] wanted) "
      "-> (Tensor, Tensor, Tensor)");
  m.impl("conv2d.padding", conv2d_padding<false>);
  m.impl("conv2d_relu.padding", conv2d_padding<true>);
}
TORCH_LIBRARY_IMPL(pyops, CPU, m) { implement(m); }
TORCH_LIBRARY_IMPL(pyops, CUDA, m) {
  if (kDevices == Devices::kCpuAndGpu) implement(m);
}
TORCH_LIBRARY_IMPL(pyops, Autograd, m) {
  m.impl("conv2d", guarded<conv2d_autograd<false>>);
  m.impl("conv2d_relu", guarded<conv2d_autograd<true>>);
  m.impl("conv2d_backward", conv2d_backward_autograd);
}
// Devices and layouts without kernels of ours, where autograd does not look (inference mode).
TORCH_LIBRARY_IMPL(pyops, CompositeExplicitAutograd, m) {
  m.impl("conv2d", guarded<conv2d_native<false>>);
  m.impl("conv2d_relu", guarded<conv2d_native<true>>);
}
TORCH_LIBRARY_IMPL(pyops, CompositeImplicitAutogradNestedTensor, m) {
  m.impl("conv2d", guarded<conv2d_native<false>>);
  m.impl("conv2d_relu", guarded<conv2d_native<true>>);
}
// They ask goes_native(), which says why in the explain() log. functorch asks the composites, too,
// for rules of their own.
TORCH_LIBRARY_IMPL(pyops, FuncTorchBatched, m) {
  m.impl("conv2d", guarded<conv2d_kernel<false>>);
  m.impl("conv2d_relu", guarded<conv2d_kernel<true>>);
  m.impl("conv2d.padding", conv2d_padding<false>);
  m.impl("conv2d_relu.padding", conv2d_padding<true>);
}
TORCH_LIBRARY_IMPL(pyops, PythonTLSSnapshot, m) {
  register_for_subclasses(m, {"conv2d", "conv2d_relu", "conv2d.padding", "conv2d_relu.padding"});
}
TORCH_LIBRARY_IMPL(pyops, AutocastCPU, m) { register_autocast(m, {"conv2d", "conv2d_relu"}); }
TORCH_LIBRARY_IMPL(pyops, AutocastCUDA, m) { register_autocast(m, {"conv2d", "conv2d_relu"}); }

}  // namespace pyops

#include "conv2d/conv2d.h"
#include "conv2d/conv2d_pool_arguments.h"
#include "conv2d/conv2d_pool_channels.h"
#include "conv2d/conv2d_pool_sm90.h"
#include "conv2d/conv2d_workspace.h"
#include "core/autograd.h"
#include "core/named.h"
#include "max_pool2d/max_pool2d_lanes.h"

namespace pyops {
namespace {

// The same gradient as that of max_pool2d: kNoTap, too, is a byte, of no window's tap.
MaxPool2dBackwardParams of_pooling(const Conv2dPoolBackwardParams& p) {
  return {p.dtype,  Argmax::kTap, p.channels_last, p.n,           p.o,       p.pool_h,
          p.pool_w, p.pooled_h,   p.pooled_w,      p.grad_pooled, p.offsets, p.grad_y};
}
void conv2d_pool_backward_avx512(const Conv2dPoolBackwardParams& p) {
  max_pool2d_backward_avx512(of_pooling(p));
}
void conv2d_pool_backward_avx2(const Conv2dPoolBackwardParams& p) {
  max_pool2d_backward_avx2(of_pooling(p));
}
template <int kLanes>
bool suits_pool_gather(const Conv2dPoolBackwardParams& p) {
  return suits_gather<kLanes>(of_pooling(p));
}

constexpr Candidate<Conv2dPoolParams> kForward[] = {
#ifdef PYOPS_CUDA
    {"conv2d_pool_forward_fused_sm90", Arch::kSm90, kHalfTypes, conv2d_pool_forward_fused_sm90,
     suits_pool_sm90, kSuitsPoolSm90},
    {"conv2d_pool_forward_sm90", Arch::kSm90, kHalfTypes, conv2d_pool_forward_sm90, suits_sm90,
     kSuitsSm90, conv2d_pool_workspace},
    {"conv2d_pool_forward_tensorop_cuda", Arch::kSm80, kHalfTypes,
     conv2d_pool_forward_tensorop_cuda, suits_tensorop, kSuitsTensorop, conv2d_pool_workspace},
    {"conv2d_pool_forward_tf32_cuda", Arch::kSm80, kFloat32, conv2d_pool_forward_tf32_cuda,
     suits_tf32<Conv2dPoolParams>, kSuitsTf32, conv2d_pool_workspace},
    {"conv2d_pool_forward_3xtf32_cuda", Arch::kSm80, kFloat32, conv2d_pool_forward_3xtf32_cuda,
     suits_tensorop, kSuitsTensorop, conv2d_pool_workspace},
    {"conv2d_pool_forward_fused_cuda", Arch::kSm80, kAnyFloat, conv2d_pool_forward_fused_cuda,
     is_pooled_by_fours, kIsPooledByFours},
    {"conv2d_pool_forward_cuda", Arch::kSm80, kAnyFloat, conv2d_pool_forward_cuda, nullptr, "",
     conv2d_pool_workspace},
#endif
    {"conv2d_pool_forward_amx", Isa::kAmx, kTileTypes, conv2d_pool_forward_amx},
    {"conv2d_pool_forward_avx512_bf16", Isa::kAvx512Bf16, kBFloat16,
     conv2d_pool_forward_avx512_bf16},
    {"conv2d_pool_forward_avx512", Isa::kAvx512, kAnyFloat, conv2d_pool_forward_avx512},
    {"conv2d_pool_forward_avx2", Isa::kAvx2, kAnyFloat, conv2d_pool_forward_avx2},
    {"conv2d_pool_forward_scalar", Isa::kScalar, kAnyFloat, conv2d_pool_forward_scalar},
};
constexpr Candidate<Conv2dPoolBackwardParams> kBackward[] = {
#ifdef PYOPS_CUDA
    {"conv2d_pool_backward_channels_cuda", Arch::kSm80, kAnyFloat,
     conv2d_pool_backward_channels_cuda, is_pooled_by_packs, kIsPooledByPacks},
    {"conv2d_pool_backward_cuda", Arch::kSm80, kAnyFloat, conv2d_pool_backward_cuda},
#endif
    {"conv2d_pool_backward_avx512", Isa::kAvx512, kTileTypes, conv2d_pool_backward_avx512,
     suits_pool_gather<16>, kSuitsGather},
    {"conv2d_pool_backward_avx2", Isa::kAvx2, kTileTypes, conv2d_pool_backward_avx2,
     suits_pool_gather<8>, kSuitsGather},
    {"conv2d_pool_backward_scalar", Isa::kScalar, kAnyFloat, conv2d_pool_backward_scalar},
};
[[maybe_unused]] const bool listed =
    list_table("conv2d_pool_forward", kForward) && list_table("conv2d_pool_backward", kBackward);
constexpr Devices kDevices = devices_of(kForward);

using SymInts = c10::SymIntArrayRef;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;
using Pooled = std::tuple<Tensor, Tensor>;  // the result, and the offsets when wanted

Tensor native(const Tensor& x, const Tensor& w, const OptionalTensor& bias, const Sizes& s) {
  return named(kPooledName, {x, w, bias}, [&] {
    const Tensor y = at::relu(at::conv2d(x, w, bias, s.stride, s.padding, s.dilation, s.groups));
    return at::max_pool2d(y, s.kernel_size, s.pool_stride, s.pool_padding, s.pool_dilation,
                          s.ceil_mode);
  });
}

bool is_left_to_native(const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                       const Sizes& s) {
  if (goes_native(kPooledName, {x, w, bias}, kDevices) || is_empty(kPooledName, x, w)) return true;
  if (s.has_countable_taps()) return false;
  note_native(kPooledName, {x, w}, "over 2^31 - 1 taps");
  return true;
}

Pooled forward_kernel(const Tensor& x, const Tensor& w, const OptionalTensor& bias, const Sizes& s,
                      bool with_offsets) {
  const Tensor b = value_or_undefined(bias);
  const Conv2dShape shape = conv2d_shape(kPooledName, x, w, b, s.convolution());
  const Pool pool = make_pool(s, shape);
  const auto format = kernel_format(shape);
  const Tensor xc = x.contiguous(format), wc = w.contiguous(format);
  const Tensor bc = b.defined() ? b.contiguous() : b;
  const auto make = [&](at::ScalarType type) {
    return at::empty({shape.n, shape.o, pool.pooled_h, pool.pooled_w}, x.options().dtype(type),
                     format);
  };
  const Tensor y = make(x.scalar_type());
  const Tensor offsets = with_offsets ? make(pool.offset_type()) : Tensor();
  const Conv2dPoolParams params{{shape, dtype_of(x), float32_precision(at::Float32Op::CONV, x),
                                 /*relu=*/true, xc.const_data_ptr(), wc.const_data_ptr(),
                                 b.defined() ? bc.const_data_ptr() : nullptr, y.mutable_data_ptr()},
                                pool.h,
                                pool.w,
                                pool.pooled_h,
                                pool.pooled_w,
                                pool.wide_offsets(),
                                with_offsets ? offsets.mutable_data_ptr() : nullptr};
  if (y.numel() != 0) serve(kPooledName, kForward, params, {x, w, b});
  const auto like = conv2d_memory_format(x, w);
  return {from_kernel(y, shape, like), from_kernel(offsets, shape, like)};
}

Tensor pooled_kernel(const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                     IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                     IntArrayRef kernel_size, IntArrayRef pool_stride, IntArrayRef pool_padding,
                     IntArrayRef pool_dilation, bool ceil_mode) {
  const Sizes s{stride,      padding,      dilation,      groups,   kernel_size,
                pool_stride, pool_padding, pool_dilation, ceil_mode};
  if (is_left_to_native(x, w, bias, s)) return native(x, w, bias, s);
  if (x.dim() == 3)
    return std::get<0>(forward_kernel(x.unsqueeze(0), w, bias, s, false)).squeeze(0);
  return std::get<0>(forward_kernel(x, w, bias, s, false));
}

Pooled with_offsets_kernel(const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                           IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                           int64_t groups, IntArrayRef kernel_size, IntArrayRef pool_stride,
                           IntArrayRef pool_padding, IntArrayRef pool_dilation, bool ceil_mode) {
  return forward_kernel(x, w, bias,
                        {stride, padding, dilation, groups, kernel_size, pool_stride, pool_padding,
                         pool_dilation, ceil_mode},
                        true);
}

// Gradient of the convolution's output.
Tensor unpool_kernel(const Tensor& grad, const Tensor& offsets, const Tensor& x,
                     const Conv2dShape& shape, const Pool& pool) {
  const auto format = kernel_format(shape);
  const Tensor g = grad.contiguous(format), oc = offsets.contiguous(format);
  Tensor grad_y = at::empty({shape.n, shape.o, shape.oh, shape.ow}, x.options(), format);
  const Conv2dPoolBackwardParams params{shape,
                                        dtype_of(x),
                                        pool.h,
                                        pool.w,
                                        pool.pooled_h,
                                        pool.pooled_w,
                                        pool.wide_offsets(),
                                        g.const_data_ptr(),
                                        oc.const_data_ptr(),
                                        grad_y.mutable_data_ptr()};
  if (grad_y.numel() != 0) serve("conv2d_relu_max_pool2d_backward", kBackward, params, {grad, x});
  return grad_y;
}

Gradients backward_kernel(const Tensor& grad, const Tensor& offsets, const Tensor& x,
                          const Tensor& w, IntArrayRef stride, IntArrayRef padding,
                          IntArrayRef dilation, int64_t groups, IntArrayRef kernel_size,
                          IntArrayRef pool_stride, IntArrayRef pool_padding,
                          IntArrayRef pool_dilation, bool ceil_mode, std::array<bool, 3> wanted) {
  const Sizes s{stride,      padding,      dilation,      groups,   kernel_size,
                pool_stride, pool_padding, pool_dilation, ceil_mode};
  const Conv2dShape shape = conv2d_shape(kPooledName, x, w, Tensor(), s.convolution());
  const Pool pool = make_pool(s, shape);
  const std::array<int64_t, 4> dims{shape.n, shape.o, pool.pooled_h, pool.pooled_w};
  const IntArrayRef sizes(dims);
  TORCH_CHECK(grad.sizes() == sizes && offsets.sizes() == sizes, kPooledName,
              "_backward: grad and offsets must be ", sizes, ", got ", grad.sizes(), " and ",
              offsets.sizes());
  check_same_kind("conv2d_relu_max_pool2d_backward", "grad", grad, x);
  TORCH_CHECK(offsets.scalar_type() == pool.offset_type(), kPooledName,
              "_backward: offsets must be ", pool.offset_type(), ", got ", offsets.scalar_type());
  const Tensor grad_y = unpool_kernel(grad, offsets, x, shape, pool);
  return conv2d_backward(grad_y, x, w, std::nullopt, stride, padding, dilation, groups, wanted);
}

Gradients call_backward(const Tensor& grad, const Tensor& offsets, const Tensor& x, const Tensor& w,
                        const Sizes& s, std::array<bool, 3> wanted) {
  static const auto op = find_op<decltype(backward_kernel)>("conv2d_relu_max_pool2d_backward");
  return op.call(grad, offsets, x, w, s.stride, s.padding, s.dilation, s.groups, s.kernel_size,
                 s.pool_stride, s.pool_padding, s.pool_dilation, s.ceil_mode, wanted);
}

// Positions in the convolution's flattened output plane that the offsets stand for. Where there is
// none the gradient is zero wherever it goes.
Tensor flat_indices(const Tensor& offsets, const Pool& pool) {
  const Tensor tap = offsets.to(at::kLong);
  const auto start = [&](const PoolAxis& axis, int64_t pooled) {
    return at::arange(pooled, tap.options()) * axis.stride - axis.padding;
  };
  const Tensor y = start(pool.h, pool.pooled_h).unsqueeze(-1) +
                   tap.floor_divide(pool.w.kernel) * pool.h.dilation;
  const Tensor x = start(pool.w, pool.pooled_w) + tap.remainder(pool.w.kernel) * pool.w.dilation;
  return (y * pool.w.size + x).clamp(0, pool.h.size * pool.w.size - 1).flatten(2);
}

// The same gradients as differentiable operations; offsets are constants.
Gradients differentiable_backward(const Tensor& grad, const Tensor& offsets, const Tensor& x,
                                  const Tensor& w, const Sizes& s, std::array<bool, 3> wanted) {
  const Conv2dShape shape = conv2d_shape(kPooledName, x, w, Tensor(), s.convolution());
  const Pool pool = make_pool(s, shape);
  const Tensor passes = offsets.ne(pool.wide_offsets() ? kNoTap : static_cast<uint8_t>(kNoTap));
  const Tensor masked = grad.where(passes, 0).flatten(2);
  const Tensor grad_y = at::zeros({shape.n, shape.o, shape.oh * shape.ow}, grad.options())
                            .scatter_add(2, flat_indices(offsets, pool), masked)
                            .view({shape.n, shape.o, shape.oh, shape.ow});
  return conv2d_backward(grad_y, x, w, std::nullopt, s.stride, s.padding, s.dilation, s.groups,
                         wanted);
}

Gradients backward_autograd(const Tensor& grad, const Tensor& offsets, const Tensor& x,
                            const Tensor& w, IntArrayRef stride, IntArrayRef padding,
                            IntArrayRef dilation, int64_t groups, IntArrayRef kernel_size,
                            IntArrayRef pool_stride, IntArrayRef pool_padding,
                            IntArrayRef pool_dilation, bool ceil_mode, std::array<bool, 3> wanted) {
  const Sizes s{stride,      padding,      dilation,      groups,   kernel_size,
                pool_stride, pool_padding, pool_dilation, ceil_mode};
  if (native_reason({grad, x, w}, kDevices) != nullptr || needs_grad({grad, x, w})) {
    return differentiable_backward(grad, offsets, x, w, s, wanted);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_backward(grad, offsets, x, w, s, wanted);
}

Pooled call_with_offsets(const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                         const Sizes& s) {
  static const auto op =
      find_op<decltype(with_offsets_kernel)>("conv2d_relu_max_pool2d_with_offsets");
  const Unrecorded scope;
  return op.call(x, w, bias, s.stride, s.padding, s.dilation, s.groups, s.kernel_size,
                 s.pool_stride, s.pool_padding, s.pool_dilation, s.ceil_mode);
}

variable_list input_gradients(const RecordedCall& call) {
  const auto numbers = integers_of<15>(call.values);
  const auto pair = [&](size_t i) { return IntArrayRef(numbers).slice(2 * i, 2); };
  const Sizes s{pair(0),     pair(1), pair(2),
                numbers[14], pair(3), pair(4),
                pair(5),     pair(6), call.values[15].toBool()};
  const auto& [x, w, offsets] = std::tie(call.saved[0], call.saved[1], call.saved[2]);
  auto [grad_x, grad_w, grad_bias] = call_backward(
      call.grads[0], offsets, x, w, s, {call.wanted[0], call.wanted[1], call.wanted[2]});
  return {grad_x, grad_w, grad_bias};
}
constexpr Gradient kGradient{"Conv2dReluMaxPool2dBackward", input_gradients};

Pooled record_forward(const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                      const Sizes& s) {
  const Pooled results = call_with_offsets(x, w, bias, s);
  const auto& [y, offsets] = results;
  Values numbers;
  for (const IntArrayRef values :
       {s.stride, s.padding, s.dilation, s.kernel_size,
        s.pool_stride.empty() ? s.kernel_size : s.pool_stride, s.pool_padding, s.pool_dilation}) {
    numbers.insert(numbers.end(), {values.front(), values.back()});
  }
  numbers.insert(numbers.end(), {s.groups, s.ceil_mode});
  record(kGradient, {x, w, bias}, {y}, {x, w, offsets}, std::move(numbers));
  return results;
}

// What autograd uses in place of the operator below; x is (N, C, H, W).
Pooled with_offsets_autograd(const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                             IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                             int64_t groups, IntArrayRef kernel_size, IntArrayRef pool_stride,
                             IntArrayRef pool_padding, IntArrayRef pool_dilation, bool ceil_mode) {
  const Sizes s{stride,      padding,      dilation,      groups,   kernel_size,
                pool_stride, pool_padding, pool_dilation, ceil_mode};
  if (!needs_grad({x, w, bias})) return call_with_offsets(x, w, bias, s);
  return record_forward(x, w, bias, s);
}

Tensor pooled_autograd(const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                       IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                       int64_t groups, IntArrayRef kernel_size, IntArrayRef pool_stride,
                       IntArrayRef pool_padding, IntArrayRef pool_dilation, bool ceil_mode) {
  const Sizes s{stride,      padding,      dilation,      groups,   kernel_size,
                pool_stride, pool_padding, pool_dilation, ceil_mode};
  if (is_left_to_native(x, w, bias, s)) return native(x, w, bias, s);
  check_same_kind(kPooledName, "weight", w, x);
  if (bias) check_same_kind(kPooledName, "bias", *bias, x);
  if (x.dim() == 3) {
    const Tensor y =
        pooled_autograd(x.unsqueeze(0), w, bias, stride, padding, dilation, groups, kernel_size,
                        pool_stride, pool_padding, pool_dilation, ceil_mode);
    return at::_unsafe_view_symint(y, y.sym_sizes().slice(1));  // as native's no view
  }
  if (is_abstract(x)) check_conv2d(kPooledName, x, w, value_or_undefined(bias), s.convolution());
  if (needs_grad({x, w, bias})) return std::get<0>(record_forward(x, w, bias, s));
  static const auto op = find_op<decltype(pooled_kernel)>(kPooledName);
  const at::AutoDispatchBelowADInplaceOrView below;
  return op.call(x, w, bias, stride, padding, dilation, groups, kernel_size, pool_stride,
                 pool_padding, pool_dilation, ceil_mode);
}

Tensor pooled_native(const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                     IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                     IntArrayRef kernel_size, IntArrayRef pool_stride, IntArrayRef pool_padding,
                     IntArrayRef pool_dilation, bool ceil_mode) {
  return native(x, w, bias,
                {stride, padding, dilation, groups, kernel_size, pool_stride, pool_padding,
                 pool_dilation, ceil_mode});
}

// The kernel below for the schema's symbolic integers.
template <auto kKernel>
Tensor guarded(const Tensor& x, const Tensor& w, const OptionalTensor& bias, SymInts stride,
               SymInts padding, SymInts dilation, c10::SymInt groups, SymInts kernel_size,
               SymInts pool_stride, SymInts pool_padding, SymInts pool_dilation, bool ceil_mode) {
  return kKernel(x, w, bias, guard(stride), guard(padding), guard(dilation), guard(groups),
                 guard(kernel_size), guard(pool_stride), guard(pool_padding), guard(pool_dilation),
                 ceil_mode);
}

// padding="same" or "valid".
Tensor pooled_padding(const Tensor& x, const Tensor& w, const OptionalTensor& bias, SymInts stride,
                      std::string_view padding, SymInts dilation, c10::SymInt groups,
                      SymInts kernel_size, SymInts pool_stride, SymInts pool_padding,
                      SymInts pool_dilation, bool ceil_mode) {
  static const auto op = find_op<decltype(guarded<pooled_autograd>)>(kPooledName);
  const auto [padded, both] =
      resolve_padding(kPooledName, x, w, guard(stride), padding, guard(dilation));
  const c10::SymInt symbols[] = {both[0], both[1]};
  return op.call(padded, w, bias, stride, symbols, dilation, groups, kernel_size, pool_stride,
                 pool_padding, pool_dilation, ceil_mode);
}

// On every device that the tables serve.
void implement(torch::Library& m) {
  register_kernel<"conv2d_relu_max_pool2d", pooled_kernel>(m);
  register_kernel<"conv2d_relu_max_pool2d_with_offsets", with_offsets_kernel>(m);
  register_kernel<"conv2d_relu_max_pool2d_backward", backward_kernel>(m);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def(
      "conv2d_relu_max_pool2d(Tensor input, Tensor weight, Tensor? bias=None, SymInt[2] stride=1, "
      "SymInt[2] padding=0, SymInt[2] dilation=1, SymInt groups=1, *, SymInt[2] kernel_size=2, "
      "SymInt[2] pool_stride=[], SymInt[2] pool_padding=0, SymInt[2] pool_dilation=1, "
      "bool ceil_mode=False) -> Tensor");
  m.def(
      "conv2d_relu_max_pool2d.padding(Tensor input, Tensor weight, Tensor? bias=None, "
      "SymInt[2] stride=1, str padding=\"valid\", SymInt[2] dilation=1, SymInt groups=1, *, "
      "SymInt[2] kernel_size=2, SymInt[2] pool_stride=[], SymInt[2] pool_padding=0, "
      "SymInt[2] pool_dilation=1, bool ceil_mode=False) -> Tensor");
  m.def(
      "conv2d_relu_max_pool2d_with_offsets(Tensor input, Tensor weight, Tensor? bias, "
      "int[2] stride, int[2] padding, int[2] dilation, int groups, int[2] kernel_size, "
      "int[2] pool_stride, int[2] pool_padding, int[2] pool_dilation, bool ceil_mode) "
      "-> (Tensor, Tensor)");
  m.def(
      "conv2d_relu_max_pool2d_backward(Tensor grad, Tensor offsets, Tensor input, "
      "Tensor weight, int[2] stride, int[2] padding, int[2] dilation, int groups, "
      "int[2] kernel_size, int[2] pool_stride, int[2] pool_padding, int[2] pool_dilation, "
      "bool ceil_mode, bool[3] wanted) -> (Tensor, Tensor, Tensor)");
  m.impl("conv2d_relu_max_pool2d.padding", pooled_padding);
}
TORCH_LIBRARY_IMPL(pyops, CPU, m) { implement(m); }
TORCH_LIBRARY_IMPL(pyops, CUDA, m) {
  if (kDevices == Devices::kCpuAndGpu) implement(m);
}
TORCH_LIBRARY_IMPL(pyops, Autograd, m) {
  m.impl("conv2d_relu_max_pool2d", guarded<pooled_autograd>);
  m.impl("conv2d_relu_max_pool2d_with_offsets", with_offsets_autograd);
  m.impl("conv2d_relu_max_pool2d_backward", backward_autograd);
}
// Devices and layouts without kernels of ours, where autograd does not look (inference mode).
TORCH_LIBRARY_IMPL(pyops, CompositeExplicitAutograd, m) {
  m.impl("conv2d_relu_max_pool2d", guarded<pooled_native>);
}
TORCH_LIBRARY_IMPL(pyops, CompositeImplicitAutogradNestedTensor, m) {
  m.impl("conv2d_relu_max_pool2d", guarded<pooled_native>);
}
// It asks goes_native(), which says why in the explain() log.
TORCH_LIBRARY_IMPL(pyops, FuncTorchBatched, m) {
  m.impl("conv2d_relu_max_pool2d", guarded<pooled_kernel>);
  m.impl("conv2d_relu_max_pool2d.padding", pooled_padding);
}
TORCH_LIBRARY_IMPL(pyops, PythonTLSSnapshot, m) {
  register_for_subclasses(m, {"conv2d_relu_max_pool2d", "conv2d_relu_max_pool2d.padding"});
}
TORCH_LIBRARY_IMPL(pyops, AutocastCPU, m) { register_autocast(m, {"conv2d_relu_max_pool2d"}); }
TORCH_LIBRARY_IMPL(pyops, AutocastCUDA, m) { register_autocast(m, {"conv2d_relu_max_pool2d"}); }

}  // namespace pyops

#include "linear_relu/linear_relu.h"

#include "core/autograd.h"
#include "core/named.h"
#include "linear_relu/linear_relu_tensorop.h"

namespace pyops {
namespace {

constexpr Candidate<LinearParams> kForward[] = {
#ifdef PYOPS_CUDA
    {"linear_forward_sm90", Arch::kSm90, kHalfTypes, linear_forward_sm90, suits_tensorop,
     kSuitsTensorop},
    {"linear_forward_tensorop_cuda", Arch::kSm80, kHalfTypes, linear_forward_tensorop_cuda,
     suits_tensorop, kSuitsTensorop},
    {"linear_forward_tf32_cuda", Arch::kSm80, kFloat32, linear_forward_tf32_cuda,
     suits_tf32<LinearParams>, kSuitsTf32},
    {"linear_forward_3xtf32_cuda", Arch::kSm80, kFloat32, linear_forward_3xtf32_cuda,
     suits_tensorop, kSuitsTensorop},
    {"linear_forward_cuda", Arch::kSm80, kAnyFloat, linear_forward_cuda},
#endif
    {"linear_forward_amx", Isa::kAmx, kTileTypes, linear_forward_amx},
    {"linear_forward_avx512_bf16", Isa::kAvx512Bf16, kBFloat16, linear_forward_avx512_bf16},
    {"linear_forward_avx512", Isa::kAvx512, kAnyFloat, linear_forward_avx512},
    {"linear_forward_avx2", Isa::kAvx2, kAnyFloat, linear_forward_avx2},
    {"linear_forward_scalar", Isa::kScalar, kAnyFloat, linear_forward_scalar},
};
constexpr Candidate<LinearBackwardParams> kBackward[] = {
#ifdef PYOPS_CUDA
    {"linear_backward_sm90", Arch::kSm90, kHalfTypes, linear_backward_sm90, suits_tensorop,
     kSuitsTensorop, linear_backward_workspace_sm90},
    {"linear_backward_tensorop_cuda", Arch::kSm80, kHalfTypes, linear_backward_tensorop_cuda,
     suits_tensorop, kSuitsTensorop, linear_backward_workspace},
    {"linear_backward_tf32_cuda", Arch::kSm80, kFloat32, linear_backward_tf32_cuda,
     suits_tf32<LinearBackwardParams>, kSuitsTf32, linear_backward_workspace},
    {"linear_backward_3xtf32_cuda", Arch::kSm80, kFloat32, linear_backward_3xtf32_cuda,
     suits_tensorop, kSuitsTensorop, linear_backward_workspace},
    {"linear_backward_cuda", Arch::kSm80, kAnyFloat, linear_backward_cuda},
#endif
    {"linear_backward_amx", Isa::kAmx, kTileTypes, linear_backward_amx},
    {"linear_backward_avx512_bf16", Isa::kAvx512Bf16, kBFloat16, linear_backward_avx512_bf16},
    {"linear_backward_avx512", Isa::kAvx512, kAnyFloat, linear_backward_avx512},
    {"linear_backward_avx2", Isa::kAvx2, kAnyFloat, linear_backward_avx2},
    {"linear_backward_scalar", Isa::kScalar, kAnyFloat, linear_backward_scalar},
};
[[maybe_unused]] const bool listed =
    list_table("linear_forward", kForward) && list_table("linear_backward", kBackward);
constexpr Devices kDevices = devices_of(kForward);

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

Tensor native(const Tensor& x, const Tensor& w, const OptionalTensor& bias, bool relu) {
  return named(relu ? "linear_relu" : "linear", {x, w, bias}, [&] {
    const Tensor y = at::linear(x, w, bias);
    return relu ? at::relu(y) : y;
  });
}

// Sizes are symbolic, or a compiled graph would serve those of one call alone.
void check_linear(const char* op, const Tensor& x, const Tensor& w, const Tensor& bias) {
  TORCH_CHECK_TYPE(x.defined() && w.defined(), op, ": input and weight must be tensors, got None");
  TORCH_CHECK(w.dim() == 1 || w.dim() == 2, op,
              ": weight must be (out_features, in_features) or (in_features), got ", w.sym_sizes());
  TORCH_CHECK(x.dim() >= 1, op, ": input must have at least one dimension, got a scalar");
  TORCH_CHECK(x.sym_size(-1) == w.sym_size(-1), op,
              ": input must end in in_features=", w.sym_size(-1),
              ", the weight's last dimension, got ", x.sym_sizes());
  check_same_kind(op, "weight", w, x);
  if (bias.defined()) check_same_kind(op, "bias", bias, x);
}

// Whether a kernel of ours takes the call; native's rarer forms (a vector weight, a bias that
// broadcasts) stay native. Throws for what nobody takes.
bool is_ours(const char* op, const Tensor& x, const Tensor& w, const Tensor& bias) {
  if (goes_native(op, {x, w, bias}, kDevices)) return false;
  check_linear(op, x, w, bias);
  if (w.dim() == 2 && (!bias.defined() || (bias.dim() == 1 && bias.sym_size(0) == w.sym_size(0)))) {
    return true;
  }
  note_native(op, {x, w, bias}, "a vector as weight, or a bias that broadcasts");
  return false;
}

at::IntArrayRef leading(const Tensor& x) { return x.sizes().slice(0, x.sizes().size() - 1); }
int64_t rows_of(const Tensor& x) { return c10::multiply_integers(leading(x)); }

c10::DimVector with_features(const Tensor& x, int64_t features) {
  c10::DimVector sizes(x.sizes());
  sizes.back() = features;
  return sizes;
}

// Decides again what the autograd kernel decided: inference mode comes straight here.
Tensor forward(const char* op, const Tensor& x, const Tensor& w, const Tensor& bias, bool relu) {
  if (!is_ours(op, x, w, bias)) return native(x, w, bias, relu);
  const Tensor xc = x.contiguous(), wc = w.contiguous();
  const Tensor bc = bias.defined() ? bias.contiguous() : bias;
  Tensor y = at::empty(with_features(x, w.size(0)), x.options());
  if (y.numel() == 0) return y;
  const LinearParams params{.dtype = dtype_of(x),
                            .precision = float32_precision(at::Float32Op::MATMUL, x),
                            .m = rows_of(x),
                            .n = w.size(0),
                            .k = w.size(1),
                            .relu = relu,
                            .x = xc.const_data_ptr(),
                            .w = wc.const_data_ptr(),
                            .bias = bias.defined() ? bc.const_data_ptr() : nullptr,
                            .y = y.mutable_data_ptr()};
  serve(op, kForward, params, {x, w, bias});
  return y;
}

Tensor linear(const Tensor& x, const Tensor& w, const OptionalTensor& bias) {
  return forward("linear", x, w, value_or_undefined(bias), false);
}
Tensor linear_relu(const Tensor& x, const Tensor& w, const OptionalTensor& bias) {
  return forward("linear_relu", x, w, value_or_undefined(bias), true);
}

// Kernels trust what autograd brings about; who calls the operator by torch.ops may not.
void check_backward(const Tensor& grad, const Tensor& x, const Tensor& w, const Tensor& y,
                    const std::array<bool, 3>& wanted) {
  const char* op = "linear_backward";
  TORCH_CHECK((w.defined() || !wanted[0]) && (x.defined() || !wanted[1]), op,
              ": the input's gradient takes the weight, and the weight's the input, got None");
  bool fits = grad.dim() >= 1 && (!y.defined() || y.sizes() == grad.sizes());
  fits = fits && (!x.defined() || (x.dim() == grad.dim() && leading(x) == leading(grad)));
  fits = fits && (!w.defined() || (w.dim() == 2 && w.size(0) == grad.size(-1)));
  fits = fits && (!x.defined() || !w.defined() || x.size(-1) == w.size(1));
  const auto sizes = [](const Tensor& t) { return t.defined() ? t.sizes() : at::IntArrayRef(); };
  TORCH_CHECK(fits, op, ": grad and relu_output must be (…, N), input (…, K) and weight (N, K), ",
              "got ", grad.sizes(), ", ", sizes(y), ", ", sizes(x), " and ", sizes(w));
  for (const Tensor* t : {&x, &w, &y}) {
    TORCH_CHECK(!t->defined() || t->scalar_type() == grad.scalar_type(), op,
                ": every tensor must have grad's dtype ", grad.scalar_type(), ", got ",
                t->scalar_type());
  }
}

// Input and weight may be absent where no gradient that is wanted takes them.
Gradients linear_backward(const Tensor& grad, const OptionalTensor& input,
                          const OptionalTensor& weight, const OptionalTensor& relu_output,
                          std::array<bool, 3> wanted) {
  const Tensor x = value_or_undefined(input), w = value_or_undefined(weight);
  const Tensor y = value_or_undefined(relu_output);
  check_backward(grad, x, w, y, wanted);
  const int64_t n = grad.size(-1), k = w.defined() ? w.size(1) : x.defined() ? x.size(-1) : 0;
  const auto dense = [](const Tensor& t) { return t.defined() ? t.contiguous() : t; };
  const Tensor g = grad.contiguous(), xc = dense(x), wc = dense(w), yc = dense(y);
  const auto make = [&](bool want, at::IntArrayRef sizes) {
    return want ? at::empty(sizes, grad.options()) : Tensor();
  };
  const Tensor grad_x = make(wanted[0], with_features(grad, k)), grad_w = make(wanted[1], {n, k});
  const Tensor grad_bias = make(wanted[2], {n});
  const auto from = [](const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; };
  const auto to = [](const Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; };
  const LinearBackwardParams params{.dtype = dtype_of(grad),
                                    .precision = float32_precision(at::Float32Op::MATMUL, grad),
                                    .m = rows_of(grad),
                                    .n = n,
                                    .k = k,
                                    .grad_y = from(g),
                                    .y = from(yc),
                                    .x = from(xc),
                                    .w = from(wc),
                                    .grad_x = to(grad_x),
                                    .grad_w = to(grad_w),
                                    .grad_bias = to(grad_bias)};
  serve("linear_backward", kBackward, params, {grad, x, w});
  return {grad_x, grad_w, grad_bias};
}

Gradients call_backward(const Tensor& grad, const OptionalTensor& x, const OptionalTensor& w,
                        const OptionalTensor& relu_output, std::array<bool, 3> wanted) {
  static const auto op = find_op<decltype(linear_backward)>("linear_backward");
  return op.call(grad, x, w, relu_output, wanted);
}

// Its rows, where -1 for their number would not do: there may be no features.
Tensor as_matrix(const Tensor& t) { return t.dim() == 1 ? t.unsqueeze(0) : t.flatten(0, -2); }

// The same gradients as differentiable operations. The mask is a constant: ReLU has no curvature.
Gradients differentiable_backward(const Tensor& grad, const OptionalTensor& x,
                                  const OptionalTensor& w, const OptionalTensor& relu_output,
                                  std::array<bool, 3> wanted) {
  const Tensor masked = relu_output ? at::threshold_backward(grad, relu_output->detach(), 0) : grad;
  const Tensor g = as_matrix(masked);
  return {wanted[0] ? masked.matmul(*w) : Tensor(),
          wanted[1] ? g.t().matmul(as_matrix(*x)) : Tensor(), wanted[2] ? g.sum(0) : Tensor()};
}

Gradients linear_backward_autograd(const Tensor& grad, const OptionalTensor& x,
                                   const OptionalTensor& w, const OptionalTensor& relu_output,
                                   std::array<bool, 3> wanted) {
  if (native_reason({grad, x, w}, kDevices) != nullptr || needs_grad({grad, x, w})) {
    return differentiable_backward(grad, x, w, relu_output, wanted);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_backward(grad, x, w, relu_output, wanted);
}

template <bool kRelu>
Tensor call_forward(const Tensor& x, const Tensor& w, const OptionalTensor& bias) {
  static const auto op = find_op<decltype(linear)>(kRelu ? "linear_relu" : "linear");
  const Unrecorded scope;
  return op.call(x, w, bias);
}

variable_list input_gradients(const RecordedCall& call) {
  const auto& saved = call.saved;
  auto [grad_x, grad_w, grad_bias] =
      call_backward(call.grads[0], value_if_defined(saved[0]), value_if_defined(saved[1]),
                    value_if_defined(saved[2]), {call.wanted[0], call.wanted[1], call.wanted[2]});
  return {grad_x, grad_w, grad_bias};
}
template <bool kRelu>
constexpr Gradient kGradient{kRelu ? "LinearReluBackward" : "LinearBackward", input_gradients};

template <bool kRelu>
Tensor linear_autograd(const Tensor& x, const Tensor& w, const OptionalTensor& bias) {
  const Tensor b = value_or_undefined(bias);
  if (!is_ours(kRelu ? "linear_relu" : "linear", x, w, b)) return native(x, w, bias, kRelu);
  const Tensor y = call_forward<kRelu>(x, w, bias);
  if (needs_grad({x, w, b})) {
    // As native, each for the other's gradient: a frozen layer keeps no input.
    const Tensor none;
    record(kGradient<kRelu>, {x, w, b}, {y},
           {w.requires_grad() ? x : none, x.requires_grad() ? w : none, kRelu ? y : none});
  }
  return y;
}

template <bool kRelu>
Tensor linear_native(const Tensor& x, const Tensor& w, const OptionalTensor& bias) {
  return native(x, w, bias, kRelu);
}

// On every device that the tables serve.
void implement(torch::Library& m) {
  register_kernel<"linear", linear>(m);
  register_kernel<"linear_relu", linear_relu>(m);
  register_kernel<"linear_backward", linear_backward>(m);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def("linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor");
  m.def("linear_relu(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor");
  m.def(
      "linear_backward(Tensor grad, Tensor? input, Tensor? weight, Tensor? relu_output, "
      "bool[3] wanted) -> (Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(pyops, CPU, m) { implement(m); }
TORCH_LIBRARY_IMPL(pyops, CUDA, m) {
  if (kDevices == Devices::kCpuAndGpu) implement(m);
}
TORCH_LIBRARY_IMPL(pyops, Autograd, m) {
  m.impl("linear", linear_autograd<false>);
  m.impl("linear_relu", linear_autograd<true>);
  m.impl("linear_backward", linear_backward_autograd);
}
// Devices and layouts without kernels of ours, where autograd does not look (inference mode).
TORCH_LIBRARY_IMPL(pyops, CompositeExplicitAutograd, m) {
  m.impl("linear", linear_native<false>);
  m.impl("linear_relu", linear_native<true>);
}
TORCH_LIBRARY_IMPL(pyops, CompositeImplicitAutogradNestedTensor, m) {
  m.impl("linear", linear_native<false>);
  m.impl("linear_relu", linear_native<true>);
}
// They ask goes_native(), which says why in the explain() log.
TORCH_LIBRARY_IMPL(pyops, FuncTorchBatched, m) {
  m.impl("linear", linear);
  m.impl("linear_relu", linear_relu);
}
TORCH_LIBRARY_IMPL(pyops, PythonTLSSnapshot, m) {
  register_for_subclasses(m, {"linear", "linear_relu"});
}
TORCH_LIBRARY_IMPL(pyops, AutocastCPU, m) { register_autocast(m, {"linear", "linear_relu"}); }
TORCH_LIBRARY_IMPL(pyops, AutocastCUDA, m) { register_autocast(m, {"linear", "linear_relu"}); }

}  // namespace pyops

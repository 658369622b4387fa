// One direction of a layer as an operator: schema, choice of the kernel, autograd.
#include "rnn/rnn_layer.h"

#include <c10/util/SmallVector.h>

#include "rnn/rnn.h"

namespace pyops {
namespace {

constexpr Candidate<RnnParams> kForward[] = {
    {"rnn_forward_amx", Isa::kAmx, kTileTypes, rnn_forward_amx},
    {"rnn_forward_avx512", Isa::kAvx512, kAnyFloat, rnn_forward_avx512},
    {"rnn_forward_avx2", Isa::kAvx2, kAnyFloat, rnn_forward_avx2},
    {"rnn_forward_scalar", Isa::kScalar, kAnyFloat, rnn_forward_scalar},
};
constexpr Candidate<RnnBackwardParams> kBackward[] = {
    {"rnn_backward_amx", Isa::kAmx, kTileTypes, rnn_backward_amx},
    {"rnn_backward_avx512", Isa::kAvx512, kAnyFloat, rnn_backward_avx512},
    {"rnn_backward_avx2", Isa::kAvx2, kAnyFloat, rnn_backward_avx2},
    {"rnn_backward_scalar", Isa::kScalar, kAnyFloat, rnn_backward_scalar},
};
[[maybe_unused]] const bool listed =
    list_table("rnn_forward", kForward) && list_table("rnn_backward", kBackward);

// Of input, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr.
constexpr size_t kInputs = 8;
using Inputs = std::array<OptionalTensor, kInputs>;
using Wanted = std::array<bool, kInputs>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

struct RnnLayerBackward : RnnLayer {
  OptionalTensor grad_y, grad_hn, grad_cn;
  Tensor y, reserve;
  Wanted wanted{};

  Inputs inputs() const { return {input, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr}; }
};

// Where each step's rows begin, checked: kernels trust it.
using Offsets = c10::SmallVector<int64_t, 2>;
Offsets offsets_of(const RnnLayer& layer) {
  const int64_t batch = layer.h0.size(0);
  Offsets offsets{0};
  if (!layer.batch_sizes) {
    const int64_t steps = layer.input.dim() == 3 ? layer.input.size(0) : 1;
    for (int64_t t = 0; t < steps; ++t) offsets.push_back(offsets.back() + batch);
    return offsets;
  }
  const Tensor sizes = layer.batch_sizes->contiguous();
  const auto* size = sizes.const_data_ptr<int64_t>();
  int64_t before = batch;
  for (int64_t t = 0; t < sizes.numel(); ++t) {
    TORCH_CHECK(size[t] >= 0 && size[t] <= before && (t > 0 || size[t] == batch), layer.name(),
                ": batch_sizes must start with the hidden state's batch of ", batch,
                " and never grow, got ", size[t], " at step ", t);
    before = size[t];
    offsets.push_back(offsets.back() + size[t]);
  }
  TORCH_CHECK(offsets.back() == layer.input.size(0), layer.name(),
              ": batch_sizes must add up to the ", layer.input.size(0), " rows of the data, got ",
              offsets.back());
  return offsets;
}

RnnShape shape_of(const RnnLayer& layer, const Offsets& offsets) {
  return {.dtype = dtype_of(layer.input),
          .precision = float32_precision(at::Float32Op::RNN),
          .cell = layer.c0 ? RnnCell::kLstm : RnnCell::kGru,
          .reverse = layer.reverse,
          .steps = static_cast<int64_t>(offsets.size()) - 1,
          .batch = layer.h0.size(0),
          .input = layer.input.size(-1),
          .hidden = layer.hidden(),
          .output = layer.h0.size(1),
          .offsets = offsets.data()};
}

// Keeps contiguous copies alive as long as their addresses are used.
class Contiguous {
 public:
  const void* operator()(const Tensor& t) {
    return copies_.emplace_back(t.contiguous()).const_data_ptr();
  }
  const void* operator()(const OptionalTensor& t) { return t ? (*this)(*t) : nullptr; }

 private:
  c10::SmallVector<Tensor, 12> copies_;
};

// Decides again what the autograd kernel decided: inference mode comes straight here.
RnnOutputs rnn_layer_cpu(const RnnLayer& layer) {
  if (goes_native(layer.name(), {layer.input, layer.h0, layer.w_ih, layer.w_hh})) {
    return rnn_layer_composite(layer);
  }
  check_rnn_layer(layer);
  const Tensor& input = layer.input;
  const Offsets offsets = offsets_of(layer);
  RnnParams params{};
  static_cast<RnnShape&>(params) = shape_of(layer, offsets);
  auto sizes = c10::SmallVector<int64_t, 3>(input.sizes());
  sizes.back() = params.output;
  const int64_t width = (layer.save ? layer.kept() : layer.gates()) * params.hidden;
  const auto accumulate =
      input.options().dtype(params.dtype == Dtype::kFloat64 ? at::kDouble : at::kFloat);
  const Tensor y = at::empty(sizes, input.options()), hn = at::empty(layer.h0.sizes(), y.options());
  const Tensor cn = at::empty(layer.c0 ? layer.c0->sizes() : at::IntArrayRef{0}, y.options());
  const Tensor reserve = at::empty({params.rows(), width}, accumulate);
  Contiguous data;
  params.save = layer.save;
  params.x = data(input);
  params.h0 = data(layer.h0);
  params.c0 = data(layer.c0);
  params.w_ih = data(layer.w_ih);
  params.w_hh = data(layer.w_hh);
  params.b_ih = data(layer.b_ih);
  params.b_hh = data(layer.b_hh);
  params.w_hr = data(layer.w_hr);
  params.y = y.mutable_data_ptr();
  params.hn = hn.mutable_data_ptr();
  params.cn = cn.mutable_data_ptr();
  params.reserve = reserve.mutable_data_ptr();
  choose(layer.name(), kForward, params, {input, layer.h0, layer.w_ih, layer.w_hh}).run(params);
  return {y, hn, cn, layer.save ? reserve : at::empty({0}, accumulate)};
}

Gradients rnn_layer_backward_cpu(const RnnLayerBackward& layer) {
  check_rnn_layer(layer);
  const Offsets offsets = offsets_of(layer);
  RnnBackwardParams params{};
  static_cast<RnnShape&>(params) = shape_of(layer, offsets);
  TORCH_CHECK(layer.reserve.numel() == params.rows() * layer.kept() * params.hidden &&
                  layer.y.numel() == params.rows() * params.output,
              layer.name(), ": the backward needs what a forward with save=True returned, got ",
              layer.y.sizes(), " and ", layer.reserve.sizes());
  const Inputs inputs = layer.inputs();
  std::array<Tensor, kInputs> grads;
  std::array<void*, kInputs> to{};
  for (size_t k = 0; k < kInputs; ++k) {
    if (!layer.wanted[k] || !inputs[k]) continue;
    grads[k] = at::empty(inputs[k]->sizes(), inputs[k]->options());
    to[k] = grads[k].mutable_data_ptr();
  }
  Contiguous data;
  params.x = data(layer.input);
  params.h0 = data(layer.h0);
  params.c0 = data(layer.c0);
  params.w_ih = data(layer.w_ih);
  params.w_hh = data(layer.w_hh);
  params.w_hr = data(layer.w_hr);
  params.y = data(layer.y);
  params.reserve = data(layer.reserve);
  params.grad_y = data(layer.grad_y);
  params.grad_hn = data(layer.grad_hn);
  params.grad_cn = layer.c0 ? data(layer.grad_cn) : nullptr;
  params.grad_x = to[0];
  params.grad_h0 = to[1];
  params.grad_c0 = to[2];
  params.grad_w_ih = to[3];
  params.grad_w_hh = to[4];
  params.grad_b_ih = to[5];
  params.grad_b_hh = to[6];
  params.grad_w_hr = to[7];
  const char* op = layer.c0 ? "lstm_backward" : "gru_backward";
  choose(op, kBackward, params, {layer.input, layer.h0, layer.w_ih, layer.w_hh}).run(params);
  return std::tuple_cat(grads);
}

// Dispatcher signatures, from and to the structs above.
template <RnnOutputs (*kKernel)(const RnnLayer&)>
RnnOutputs flat_forward(const Tensor& input, const Tensor& h0, const OptionalTensor& c0,
                        const Tensor& w_ih, const Tensor& w_hh, const OptionalTensor& b_ih,
                        const OptionalTensor& b_hh, const OptionalTensor& w_hr,
                        const OptionalTensor& batch_sizes, bool reverse, bool save) {
  return kKernel({input, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, reverse, save});
}

template <Gradients (*kKernel)(const RnnLayerBackward&)>
Gradients flat_backward(const OptionalTensor& grad_y, const OptionalTensor& grad_hn,
                        const OptionalTensor& grad_cn, const Tensor& input, const Tensor& h0,
                        const OptionalTensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                        const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                        const OptionalTensor& w_hr, const OptionalTensor& batch_sizes,
                        const Tensor& y, const Tensor& reserve, bool reverse, Wanted wanted) {
  return kKernel({{input, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, reverse, true},
                  grad_y,
                  grad_hn,
                  grad_cn,
                  y,
                  reserve,
                  wanted});
}

Gradients call_backward(const RnnLayerBackward& b) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("pyops::rnn_layer_backward", "")
                             .typed<decltype(flat_backward<rnn_layer_backward_cpu>)>();
  return op.call(b.grad_y, b.grad_hn, b.grad_cn, b.input, b.h0, b.c0, b.w_ih, b.w_hh, b.b_ih,
                 b.b_hh, b.w_hr, b.batch_sizes, b.y, b.reserve, b.reverse, b.wanted);
}

// The same gradients as a graph: the layer runs again as differentiable operations.
Gradients differentiable_backward(const RnnLayerBackward& layer) {
  const at::AutoGradMode record(true);
  Inputs inputs = layer.inputs();
  std::vector<Tensor> of;
  for (size_t k = 0; k < kInputs; ++k) {
    if (!layer.wanted[k] || !inputs[k]) continue;
    if (!inputs[k]->requires_grad()) inputs[k] = inputs[k]->detach().requires_grad_();
    of.push_back(*inputs[k]);
  }
  const auto& [x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr] = inputs;
  const auto [y, hn, cn, reserve] = rnn_layer_composite(
      {*x, *h0, c0, *w_ih, *w_hh, b_ih, b_hh, w_hr, layer.batch_sizes, layer.reverse});
  const std::array outputs{y, hn, cn};
  const std::array given{layer.grad_y, layer.grad_hn, layer.grad_cn};
  std::vector<Tensor> from, grads;
  for (size_t k = 0; k < outputs.size(); ++k) {
    if (!given[k] || !outputs[k].requires_grad()) continue;
    from.push_back(outputs[k]);
    grads.push_back(*given[k]);
  }
  std::array<Tensor, kInputs> result;
  if (from.empty()) return std::tuple_cat(result);
  const auto computed = differentiable_grad(from, of, grads);
  for (size_t k = 0, next = 0; k < kInputs; ++k) {
    if (layer.wanted[k] && inputs[k]) result[k] = computed[next++];
  }
  return std::tuple_cat(result);
}

Gradients rnn_layer_backward_autograd(const RnnLayerBackward& layer) {
  const Tensors all{layer.grad_y, layer.grad_hn, layer.grad_cn, layer.input, layer.h0,  layer.c0,
                    layer.w_ih,   layer.w_hh,    layer.b_ih,    layer.b_hh,  layer.w_hr};
  if (native_reason(all) != nullptr || needs_grad(all)) return differentiable_backward(layer);
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_backward(layer);
}

struct RnnLayerFunction : torch::autograd::Function<RnnLayerFunction> {
  // Flat, for autograd looks for tensors among the arguments.
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx,
                                                const Tensor& input, const Tensor& h0,
                                                const OptionalTensor& c0, const Tensor& w_ih,
                                                const Tensor& w_hh, const OptionalTensor& b_ih,
                                                const OptionalTensor& b_hh,
                                                const OptionalTensor& w_hr,
                                                const OptionalTensor& batch_sizes, bool reverse) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [y, hn, cn, reserve] = call_rnn_layer(
        {input, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, reverse, /*save=*/true});
    const auto value = [](const OptionalTensor& t) { return value_or_undefined(t); };
    ctx->save_for_backward({input, h0, value(c0), w_ih, w_hh, value(b_ih), value(b_hh), value(w_hr),
                            value(batch_sizes), y, reserve});
    ctx->saved_data["reverse"] = reverse;
    ctx->mark_non_differentiable(c0 ? torch::autograd::variable_list{reserve}
                                    : torch::autograd::variable_list{cn, reserve});
    ctx->set_materialize_grads(false);
    return {y, hn, cn, reserve};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto s = ctx->get_saved_variables();
    const auto given = [](const Tensor& t) {
      return t.defined() ? OptionalTensor(t) : std::nullopt;
    };
    RnnLayerBackward layer{{s[0], s[1], given(s[2]), s[3], s[4], given(s[5]), given(s[6]),
                            given(s[7]), given(s[8]), ctx->saved_data["reverse"].toBool(), true},
                           given(grads[0]),
                           given(grads[1]),
                           given(grads[2]),
                           s[9],
                           s[10]};
    for (size_t k = 0, edge = 0; k < kInputs; ++k) {  // absent tensors have no edge
      layer.wanted[k] = s[k].defined() && ctx->needs_input_grad(edge++);
    }
    return std::apply(
        [](const auto&... grad) {
          return torch::autograd::variable_list{grad..., Tensor(), Tensor()};
        },
        call_backward(layer));
  }
};

RnnOutputs rnn_layer_autograd(const RnnLayer& layer) {
  const auto& [input, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, reverse, save] = layer;
  const Tensors all{input, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr};
  if (goes_native(layer.name(), all)) return rnn_layer_composite(layer);
  if (needs_grad(all)) {
    const auto result =
        RnnLayerFunction::apply(input, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, reverse);
    return {result[0], result[1], result[2], result[3]};
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_rnn_layer(layer);
}

// Native multiplies in the lower precision but carries the states in their own dtype, and answers
// in it, unless a projection, a product as well, makes the output. So everything follows the state.
RnnOutputs rnn_layer_autocast(const RnnLayer& layer) {
  const auto device = layer.h0.device().type();
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const auto cast = [&](const Tensor& t) {
    return at::autocast::cached_cast(layer.h0.scalar_type(), t, device);
  };
  RnnLayer same = layer;
  for (Tensor* t : {&same.input, &same.w_ih, &same.w_hh}) *t = cast(*t);
  for (OptionalTensor* t : {&same.c0, &same.b_ih, &same.b_hh, &same.w_hr}) {
    if (*t) *t = cast(**t);
  }
  auto [y, hn, cn, reserve] = call_rnn_layer(same);
  if (layer.w_hr) {
    for (Tensor* t : {&y, &hn}) {
      *t = at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), *t, device);
    }
  }
  return {y, hn, cn, reserve};
}

}  // namespace

RnnOutputs call_rnn_layer(const RnnLayer& layer) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("pyops::rnn_layer", "")
                             .typed<decltype(flat_forward<rnn_layer_cpu>)>();
  const auto& [input, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, reverse, save] = layer;
  return op.call(input, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, reverse, save);
}

TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def(
      "rnn_layer(Tensor input, Tensor h0, Tensor? c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, "
      "Tensor? b_hh, Tensor? w_hr, Tensor? batch_sizes, bool reverse, bool save) "
      "-> (Tensor output, Tensor hn, Tensor cn, Tensor reserve)");
  m.def(
      "rnn_layer_backward(Tensor? grad_output, Tensor? grad_hn, Tensor? grad_cn, Tensor input, "
      "Tensor h0, Tensor? c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? w_hr, "
      "Tensor? batch_sizes, Tensor output, Tensor reserve, bool reverse, bool[8] wanted) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("rnn_layer", flat_forward<rnn_layer_cpu>);
  m.impl("rnn_layer_backward", flat_backward<rnn_layer_backward_cpu>);
}
TORCH_LIBRARY_IMPL(pyops, Autograd, m) {
  m.impl("rnn_layer", flat_forward<rnn_layer_autograd>);
  m.impl("rnn_layer_backward", flat_backward<rnn_layer_backward_autograd>);
}
// Devices and layouts without kernels of ours, where autograd does not look (inference mode).
TORCH_LIBRARY_IMPL(pyops, CompositeExplicitAutograd, m) {
  m.impl("rnn_layer", flat_forward<rnn_layer_composite>);
}
TORCH_LIBRARY_IMPL(pyops, FuncTorchBatched, m) {
  m.impl("rnn_layer", flat_forward<rnn_layer_composite>);
}
TORCH_LIBRARY_IMPL(pyops, PythonTLSSnapshot, m) { register_for_subclasses(m, {"rnn_layer"}); }
TORCH_LIBRARY_IMPL(pyops, AutocastCPU, m) { m.impl("rnn_layer", flat_forward<rnn_layer_autocast>); }
TORCH_LIBRARY_IMPL(pyops, AutocastCUDA, m) {
  m.impl("rnn_layer", flat_forward<rnn_layer_autocast>);
}

}  // namespace pyops

// One direction of a layer under autograd and autocast.
#include "rnn/rnn_autograd.h"

namespace pyops {
namespace {

// The same gradients as a graph: the layer runs again as differentiable operations. It runs on
// aliases: an input may come from another one, and that way is not this layer's.
Gradients differentiable_backward(const RnnLayerBackward& layer) {
  const at::AutoGradMode record(true);
  Inputs inputs = layer.inputs();
  std::vector<Tensor> of;
  for (size_t k = 0; k < kInputs; ++k) {
    if (!layer.wanted[k] || !inputs[k]) continue;
    inputs[k] =
        inputs[k]->requires_grad() ? at::alias(*inputs[k]) : inputs[k]->detach().requires_grad_();
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
  if (native_reason(all, rnn_devices()) != nullptr || needs_grad(all))
    return differentiable_backward(layer);
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_rnn_layer_backward(layer);
}

variable_list input_gradients(const RecordedCall& call) {
  RnnLayerBackward layer =
      backward_of(call.saved.data(), call.values[0].toBool(), call.grads.data());
  std::copy_n(call.wanted.begin(), kInputs, layer.wanted.begin());
  return std::apply([](const auto&... grad) { return variable_list{grad...}; },
                    call_rnn_layer_backward(layer));
}
constexpr Gradient kGradient{"RnnLayerBackward", input_gradients};

RnnOutputs rnn_layer_autograd(const RnnLayer& layer) {
  const auto& [input, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, reverse, save] = layer;
  const Tensors all{input, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr};
  if (goes_native(layer.name(), all, rnn_devices())) return rnn_layer_composite(layer);
  if (is_abstract(input)) check_rnn_layer(layer);
  if (!needs_grad(all)) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return call_rnn_layer(layer);
  }
  RnnLayer saving = layer;
  saving.save = true;
  const RnnOutputs results = [&] {
    const Unrecorded scope;
    return call_rnn_layer(saving);
  }();
  const Tensor output = kept_output(layer, results);
  record(kGradient, all, differentiable_of(layer, results), saved_of(layer, output, results),
         {reverse});
  return results;
}

// Native multiplies in the lower precision but carries the state in its own dtype, and answers in
// it, unless a projection, a product as well, makes the output. So everything follows the state,
// c where there is one: h is made from it.
RnnOutputs rnn_layer_autocast(const RnnLayer& layer) {
  const auto device = layer.h0.device().type();
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const auto dtype = layer.c0.value_or(layer.h0).scalar_type();
  const auto cast = [&](const Tensor& t) { return at::autocast::cached_cast(dtype, t, device); };
  RnnLayer same = layer;
  for (Tensor* t : {&same.input, &same.h0, &same.w_ih, &same.w_hh}) *t = cast(*t);
  for (OptionalTensor* t : {&same.b_ih, &same.b_hh, &same.w_hr}) {
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

TORCH_LIBRARY_IMPL(pyops, Autograd, m) {
  m.impl("rnn_layer", flat_forward<rnn_layer_autograd>);
  m.impl("rnn_layer_backward", flat_backward<rnn_layer_backward_autograd>);
}
TORCH_LIBRARY_IMPL(pyops, AutocastCPU, m) { m.impl("rnn_layer", flat_forward<rnn_layer_autocast>); }
TORCH_LIBRARY_IMPL(pyops, AutocastCUDA, m) {
  m.impl("rnn_layer", flat_forward<rnn_layer_autocast>);
}

}  // namespace pyops

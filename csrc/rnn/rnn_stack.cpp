// Layers side by side, where as operators each would come after the other: choice of the kernels,
// and the node of autograd that the layers share.
#include <ATen/TracerMode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <algorithm>
#include <deque>

#include "core/named.h"
#include "rnn/rnn_autograd.h"
#include "rnn/rnn_layer_call.h"
#include "rnn/rnn_tensorop.h"
#include "rnn/rnn_wavefront.h"

namespace pyops {

#ifdef PYOPS_CUDA
namespace {

constexpr Candidate<RnnForwardStack> kForward[] = {
    {"rnn_forward_wavefront_tensorop_cuda", Arch::kSm80, kHalfTypes,
     rnn_forward_wavefront_tensorop_cuda, suits_wavefront_tensorop, kSuitsWavefront},
    {"rnn_forward_wavefront_cuda", Arch::kSm80, kFloat32 | kFloat64, rnn_forward_wavefront_cuda,
     suits_wavefront, kSuitsWavefront},
};
constexpr Candidate<RnnBackwardStack> kBackward[] = {
    {"rnn_backward_wavefront_sm90", Arch::kSm90, kHalfTypes, rnn_backward_wavefront_sm90,
     suits_wavefront_clusters, kSuitsWavefront, most_of_layers<rnn_backward_workspace_sm90>},
    {"rnn_backward_wavefront_tensorop_cuda", Arch::kSm80, kHalfTypes,
     rnn_backward_wavefront_tensorop_cuda, suits_wavefront_tensorop, kSuitsWavefront,
     most_of_layers<rnn_backward_workspace>},
    {"rnn_backward_wavefront_cuda", Arch::kSm80, kFloat32 | kFloat64, rnn_backward_wavefront_cuda,
     suits_wavefront, kSuitsWavefront, most_of_layers<rnn_backward_workspace>},
};
[[maybe_unused]] const bool listed = list_table("rnn_forward_wavefront", kForward) &&
                                     list_table("rnn_backward_wavefront", kBackward);

// Whoever watches operators, or replaces them, would miss the layers.
bool is_watched() {
  return at::tracer::impl::is_dispatch_enabled() ||
         c10::impl::TorchDispatchModeTLS::any_modes_set();
}

bool is_ours(const RnnLayer& layer) {
  const auto& [input, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, reverse, save] = layer;
  return native_reason({input, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr}, Devices::kCpuAndGpu) ==
         nullptr;
}
bool is_recorded(const RnnLayer& layer) {
  const auto& [input, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, reverse, save] = layer;
  return needs_grad({input, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr});
}

// Whether a row of the table takes layers of these shapes, as if each had the first one's input.
// Where a layer's own h0 lies may matter; what else is read in packs, the call allocates.
template <class Params, size_t kRows>
bool takes(const Candidate<RnnStack<Params>> (&table)[kRows], const std::vector<RnnLayer>& layers,
           bool stacked) {
  const RnnOffsets offsets = offsets_of(layers[0]);
  std::vector<Params> all;
  for (RnnLayer layer : layers) {
    if (layer.w_hh.dim() != 2) return false;  // the layer will say so
    layer.input = layers[0].input;
    static_cast<RnnShape&>(all.emplace_back()) = shape_of(layer, offsets);
    all.back().h0 = layer.h0.const_data_ptr();
  }
  const RnnStack<Params> stack{all[0].dtype, stacked, static_cast<int64_t>(all.size()), all.data()};
  const Target target = target_of(layers[0].name(), {layers[0].input});
  return std::any_of(table, table + kRows,
                     [&](const auto& row) { return rejection(row, stack, target) == nullptr; });
}

// run(layers, stacked), which is called by the name and the tensors of the lowest.
template <class Layers, class Run>
auto named_by_lowest(const char* op, const Layers& layers, bool stacked, const Run& run) {
  const RnnLayer& lowest = layers[0];
  return named(op, {lowest.input, lowest.h0, lowest.w_ih, lowest.w_hh},
               [&] { return run(layers, stacked); });
}

// Serves the calls of layers, the lowest first.
template <class Params, size_t kRows>
void serve_stack(const char* op, const Candidate<RnnStack<Params>> (&table)[kRows], bool stacked,
                 std::vector<Params> all, const RnnLayer& lowest) {
  Workspaces work(lowest.input);
  all[0].arrivals = work.arrivals(static_cast<int64_t>(all.size()));
  const RnnStack<Params> stack{all[0].dtype, stacked, static_cast<int64_t>(all.size()), all.data()};
  serve(op, table, stack, {lowest.input, lowest.h0, lowest.w_ih, lowest.w_hh});
}

std::vector<RnnOutputs> run_forward(std::vector<RnnLayer> layers, bool stacked) {
  std::deque<RnnForwardCall> calls;
  std::vector<RnnParams> all;
  for (RnnLayer& layer : layers) {
    if (stacked && !calls.empty()) layer.input = calls.back().y;
    check_rnn_layer(layer);
    all.push_back(calls.emplace_back(layer).params);
  }
  serve_stack(layers[0].name(), kForward, stacked, std::move(all), layers[0]);
  std::vector<RnnOutputs> outputs;
  for (const RnnForwardCall& call : calls) outputs.push_back(call.outputs());
  return outputs;
}

// The gradient that a layer gets from the one above is that of its y.
std::vector<Gradients> run_backward(std::vector<RnnLayerBackward> layers, bool stacked) {
  const at::AutoDispatchBelowADInplaceOrView below;
  std::deque<RnnBackwardCall> calls;  // the lowest first
  std::vector<RnnBackwardParams> all;
  for (auto layer = layers.rbegin(); layer != layers.rend(); ++layer) {
    if (stacked && !calls.empty()) layer->grad_y = calls.front().grads[0];
    calls.emplace_front(*layer);
  }
  for (const RnnBackwardCall& call : calls) all.push_back(call.params);
  serve_stack(layers[0].backward_name(), kBackward, stacked, std::move(all), layers[0]);
  std::vector<Gradients> grads;
  for (const RnnBackwardCall& call : calls) grads.push_back(std::tuple_cat(call.grads));
  return grads;
}

// Layer after layer, each an operator that autograd can record; `layers` as in run_backward(), but
// that somebody else may have read a layer's y.
std::vector<Gradients> run_backward_in_turn(std::vector<RnnLayerBackward> layers, bool stacked) {
  std::vector<Gradients> grads(layers.size());
  for (size_t l = layers.size(); l-- > 0;) {
    if (stacked && l + 1 < layers.size()) {
      const Tensor& from_above = std::get<0>(grads[l + 1]);
      OptionalTensor& grad_y = layers[l].grad_y;
      if (from_above.defined()) grad_y = grad_y ? *grad_y + from_above : from_above;
    }
    grads[l] = call_rnn_layer_backward(layers[l]);
  }
  return grads;
}

bool goes_at_once(const std::vector<RnnLayerBackward>& layers, bool stacked) {
  if (is_watched()) return false;
  for (size_t l = 0; l < layers.size(); ++l) {
    const RnnLayerBackward& b = layers[l];
    const Tensors grads{b.grad_y, b.grad_hn, b.grad_cn};
    if (!is_ours(b) || native_reason(grads, Devices::kCpuAndGpu) != nullptr) return false;
    if (is_recorded(b) || needs_grad(grads)) return false;
    if (stacked && ((l + 1 < layers.size() && b.grad_y) || (l > 0 && !b.wanted[0]))) return false;
  }
  return takes(kBackward, {layers.begin(), layers.end()}, stacked);
}

// The gradients of each layer's inputs, one layer after the other.
variable_list input_gradients(const RecordedCall& call) {
  const int64_t reverse = call.values[0].toInt();
  const bool stacked = call.values[1].toBool();
  std::vector<RnnLayerBackward> layers;
  bool wanted_below = false;
  for (size_t l = 0; l < call.saved.size() / kSaved; ++l) {
    const Tensor* saved = call.saved.data() + kSaved * l;
    const Tensor* grads = call.grads.data() + kDifferentiable * l;
    layers.push_back(backward_of(saved, (reverse >> l & 1) != 0, grads));
    RnnLayerBackward& layer = layers.back();
    for (size_t k = 0; k < kInputs; ++k) layer.wanted[k] = call.wanted[kInputs * l + k];
    if (!saved[0].defined()) {
      layer.input = layers[l - 1].y;
      layer.wanted[0] = wanted_below;
    }
    const auto any = std::find(layer.wanted.begin(), layer.wanted.end(), true);
    wanted_below = any != layer.wanted.end();
  }
  const auto results =
      goes_at_once(layers, stacked)
          ? named_by_lowest(layers[0].backward_name(), layers, stacked, run_backward)
          : run_backward_in_turn(layers, stacked);
  variable_list gradients;
  const auto append = [&](const auto&... grad) { gradients.insert(gradients.end(), {grad...}); };
  for (const Gradients& of_layer : results) std::apply(append, of_layer);
  return gradients;
}
constexpr Gradient kGradient{"RnnStackBackward", input_gradients};

std::vector<RnnOutputs> run_recorded(const std::vector<RnnLayer>& layers, bool stacked) {
  const std::vector<RnnOutputs> results = [&] {
    const Unrecorded scope;
    return named_by_lowest(layers[0].name(), layers, stacked, run_forward);
  }();
  std::vector<TensorRef> inputs, outputs, saved;
  std::vector<Tensor> kept_outputs;  // to which `saved` refers
  kept_outputs.reserve(layers.size());
  int64_t reverse = 0;
  for (size_t l = 0; l < layers.size(); ++l) {
    const RnnLayer& a = layers[l];
    inputs.insert(inputs.end(), {a.input, a.h0, a.c0, a.w_ih, a.w_hh, a.b_ih, a.b_hh, a.w_hr});
    const auto differentiable = differentiable_of(a, results[l]);
    outputs.insert(outputs.end(), differentiable.begin(), differentiable.end());
    kept_outputs.push_back(kept_output(a, results[l]));
    const auto kept = saved_of(a, kept_outputs.back(), results[l]);
    saved.insert(saved.end(), kept.begin(), kept.end());
    reverse |= int64_t{a.reverse} << l;
  }
  record(kGradient, inputs, outputs, saved, {reverse, stacked});
  return results;
}

}  // namespace

std::vector<RnnOutputs> call_rnn_stack(std::vector<RnnLayer> layers, bool stacked) {
  if (is_watched() || !std::all_of(layers.begin(), layers.end(), is_ours)) return {};
  if (!takes(kForward, layers, stacked)) return {};
  const bool recorded = std::any_of(layers.begin(), layers.end(), is_recorded);
  for (RnnLayer& layer : layers) layer.save = recorded;
  if (recorded) return run_recorded(layers, stacked);
  const at::AutoDispatchBelowADInplaceOrView below;
  return named_by_lowest(layers[0].name(), layers, stacked, run_forward);
}
#else
std::vector<RnnOutputs> call_rnn_stack(std::vector<RnnLayer>, bool) { return {}; }
#endif

}  // namespace pyops

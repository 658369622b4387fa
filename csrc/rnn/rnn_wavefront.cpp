// The forward of stacked layers at once, where as operators each would come after the other.
#include "rnn/rnn_wavefront.h"

#include <ATen/TracerMode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <algorithm>
#include <deque>

#include "rnn/rnn_layer_call.h"

namespace pyops {

#ifdef PYOPS_CUDA
namespace {

constexpr Candidate<RnnStack> kStack[] = {
    {"rnn_forward_wavefront_cuda", Arch::kSm80, kFloat32, rnn_forward_wavefront_cuda,
     suits_wavefront, kSuitsWavefront},
};
[[maybe_unused]] const bool listed = list_table("rnn_stack_forward", kStack);

// Whoever watches operators, or replaces them, would miss the layers.
bool is_watched() {
  return at::tracer::impl::is_dispatch_enabled() ||
         c10::impl::TorchDispatchModeTLS::any_modes_set();
}

bool is_ours(const Tensor& x, const RnnLayer& layer) {
  const auto& [input, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, reverse, save] = layer;
  return !batch_sizes &&
         native_reason({x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr}, Devices::kCpuAndGpu) == nullptr;
}

// Shapes alone, as if every layer's x were the first's: what the table asks about.
bool is_taken(const std::vector<RnnLayer>& layers) {
  std::vector<RnnParams> shapes;
  const RnnOffsets offsets = offsets_of(layers[0]);
  for (RnnLayer layer : layers) {
    if (layer.w_hh.dim() != 2) return false;  // the layer will say so
    layer.input = layers[0].input;
    static_cast<RnnShape&>(shapes.emplace_back()) = shape_of(layer, offsets);
  }
  const RnnStack stack{shapes[0].dtype, static_cast<int64_t>(layers.size()), shapes.data()};
  const Target target = target_of(layers[0].name(), {layers[0].input});
  return rejection(kStack[0], stack, target) == nullptr;
}

}  // namespace

std::vector<RnnOutputs> rnn_stack_forward(std::vector<RnnLayer> layers) {
  const Tensor x = layers[0].input;
  const auto ours = [&](const RnnLayer& layer) { return is_ours(x, layer); };
  if (is_watched() || !std::all_of(layers.begin(), layers.end(), ours)) return {};
  if (!is_taken(layers)) return {};
  const bool save = std::any_of(layers.begin(), layers.end(), is_recorded);
  const at::AutoDispatchBelowADInplaceOrView below;
  std::deque<RnnForwardCall> calls;
  std::vector<RnnParams> params;
  for (RnnLayer& layer : layers) {
    if (!calls.empty()) layer.input = calls.back().y;
    layer.save = save;
    check_rnn_layer(layer);
    params.push_back(calls.emplace_back(layer).params);
  }
  const RnnStack stack{params[0].dtype, static_cast<int64_t>(layers.size()), params.data()};
  serve(layers[0].name(), kStack, stack, {x, layers[0].h0, layers[0].w_ih, layers[0].w_hh});
  std::vector<RnnOutputs> outputs;
  for (const RnnForwardCall& call : calls) outputs.push_back(call.outputs());
  return outputs;
}
#else
std::vector<RnnOutputs> rnn_stack_forward(std::vector<RnnLayer>) { return {}; }
#endif

}  // namespace pyops

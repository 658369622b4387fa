// One direction of a layer as an operator: schema and choice of the kernel.
#include "rnn/rnn_layer.h"

#include "core/named.h"
#include "rnn/rnn_layer_call.h"
#include "rnn/rnn_tensorop.h"
#include "rnn/rnn_tiling.h"

namespace pyops {
namespace {

constexpr Candidate<RnnParams> kForward[] = {
#ifdef PYOPS_CUDA
    {"rnn_forward_resident_tensorop_cuda", Arch::kSm80, kHalfTypes,
     rnn_forward_resident_tensorop_cuda, suits_resident_tensorop, kSuitsResidentTensorop},
    {"rnn_forward_resident_cuda", Arch::kSm80, kAnyFloat, rnn_forward_resident_cuda, suits_resident,
     kSuitsResident},
    {"rnn_forward_tensorop_cuda", Arch::kSm80, kTileTypes, rnn_forward_tensorop_cuda,
     suits_tensorop, kSuitsTensorop},
    {"rnn_forward_cuda", Arch::kSm80, kAnyFloat, rnn_forward_cuda},
#endif
    {"rnn_forward_amx", Isa::kAmx, kTileTypes, rnn_forward_amx},
    {"rnn_forward_avx512_bf16", Isa::kAvx512Bf16, kBFloat16, rnn_forward_avx512_bf16},
    {"rnn_forward_avx512", Isa::kAvx512, kAnyFloat, rnn_forward_avx512},
    {"rnn_forward_avx2", Isa::kAvx2, kAnyFloat, rnn_forward_avx2},
    {"rnn_forward_scalar", Isa::kScalar, kAnyFloat, rnn_forward_scalar},
};
constexpr Candidate<RnnBackwardParams> kBackward[] = {
#ifdef PYOPS_CUDA
    {"rnn_backward_resident_sm90", Arch::kSm90, kHalfTypes, rnn_backward_resident_sm90,
     suits_clusters, kSuitsResidentTensorop, rnn_backward_workspace_sm90},
    {"rnn_backward_resident_tensorop_cuda", Arch::kSm80, kHalfTypes,
     rnn_backward_resident_tensorop_cuda, suits_resident_tensorop, kSuitsResidentTensorop,
     rnn_backward_workspace},
    {"rnn_backward_resident_cuda", Arch::kSm80, kAnyFloat, rnn_backward_resident_cuda,
     suits_resident, kSuitsResident, rnn_backward_workspace},
    {"rnn_backward_tensorop_cuda", Arch::kSm80, kTileTypes, rnn_backward_tensorop_cuda,
     suits_tensorop, kSuitsTensorop, rnn_backward_workspace},
    {"rnn_backward_cuda", Arch::kSm80, kAnyFloat, rnn_backward_cuda},
#endif
    {"rnn_backward_amx", Isa::kAmx, kTileTypes, rnn_backward_amx},
    {"rnn_backward_avx512_bf16", Isa::kAvx512Bf16, kBFloat16, rnn_backward_avx512_bf16},
    {"rnn_backward_avx512", Isa::kAvx512, kAnyFloat, rnn_backward_avx512},
    {"rnn_backward_avx2", Isa::kAvx2, kAnyFloat, rnn_backward_avx2},
    {"rnn_backward_scalar", Isa::kScalar, kAnyFloat, rnn_backward_scalar},
};
[[maybe_unused]] const bool listed =
    list_table("rnn_forward", kForward) && list_table("rnn_backward", kBackward);
constexpr Devices kDevices = devices_of(kForward);

// Decides again what the autograd kernel decided: inference mode comes straight here.
RnnOutputs rnn_layer_forward(const RnnLayer& layer) {
  if (goes_native(layer.name(), {layer.input, layer.h0, layer.w_ih, layer.w_hh}, kDevices)) {
    return rnn_layer_composite(layer);
  }
  check_rnn_layer(layer);
  const Tensors shown{layer.input, layer.h0, layer.w_ih, layer.w_hh};
  return named(layer.name(), shown, [&] {
    const RnnForwardCall call(layer);
    if (call.params.steps == 0) {
      call.hn.copy_(layer.h0);
      if (layer.c0) call.cn.copy_(*layer.c0);
    } else {
      serve(layer.name(), kForward, call.params, shown);
    }
    return call.outputs();
  });
}

Gradients rnn_layer_backward(const RnnLayerBackward& layer) {
  check_rnn_layer(layer);
  const Tensors shown{layer.input, layer.h0, layer.w_ih, layer.w_hh};
  return named(layer.backward_name(), shown, [&] {
    const RnnBackwardCall call(layer);
    serve(layer.backward_name(), kBackward, call.params, shown);
    return std::tuple_cat(call.grads);
  });
}

// On every device that the tables serve.
void implement(torch::Library& m) {
  m.impl("rnn_layer", flat_forward<rnn_layer_forward>);
  m.impl("rnn_layer_backward", flat_backward<rnn_layer_backward>);
}

}  // namespace

Devices rnn_devices() { return kDevices; }

Gradients call_rnn_layer_backward(const RnnLayerBackward& b) {
  static const auto op = find_op<decltype(flat_backward<rnn_layer_backward>)>("rnn_layer_backward");
  return op.call(b.grad_y, b.grad_hn, b.grad_cn, b.input, b.h0, b.c0, b.w_ih, b.w_hh, b.b_ih,
                 b.b_hh, b.w_hr, b.batch_sizes, b.y, b.reserve, b.reverse, b.wanted);
}

RnnOutputs call_rnn_layer(const RnnLayer& layer) {
  static const auto op = find_op<decltype(flat_forward<rnn_layer_forward>)>("rnn_layer");
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
TORCH_LIBRARY_IMPL(pyops, CPU, m) { implement(m); }
TORCH_LIBRARY_IMPL(pyops, CUDA, m) {
  if (kDevices == Devices::kCpuAndGpu) implement(m);
}
// Devices and layouts without kernels of ours, where autograd does not look (inference mode).
TORCH_LIBRARY_IMPL(pyops, CompositeExplicitAutograd, m) {
  m.impl("rnn_layer", flat_forward<rnn_layer_composite>);
}
// It asks goes_native(), which says why in the explain() log.
TORCH_LIBRARY_IMPL(pyops, FuncTorchBatched, m) {
  m.impl("rnn_layer", flat_forward<rnn_layer_forward>);
}
TORCH_LIBRARY_IMPL(pyops, PythonTLSSnapshot, m) { register_for_subclasses(m, {"rnn_layer"}); }

}  // namespace pyops

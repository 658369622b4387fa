#include "rnn/rnn_layer_call.h"

namespace pyops {
namespace {

GpuLimits gpu_of([[maybe_unused]] const Tensor& t) {
  if constexpr (kBuiltWithCuda) {
    if (t.is_cuda()) return limits_of_gpu(t.device());
  }
  return {};
}

}  // namespace

RnnOffsets offsets_of(const RnnLayer& layer) {
  const int64_t batch = layer.h0.size(0);
  RnnOffsets offsets{0};
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

RnnShape shape_of(const RnnLayer& layer, const RnnOffsets& offsets) {
  return {.dtype = dtype_of(layer.input),
          .precision = float32_precision(
              layer.one_step() ? at::Float32Op::MATMUL : at::Float32Op::RNN, layer.input),
          .cell = layer.c0 ? RnnCell::kLstm : RnnCell::kGru,
          .reverse = layer.reverse,
          .steps = static_cast<int64_t>(offsets.size()) - 1,
          .batch = layer.h0.size(0),
          .input = layer.input.size(-1),
          .hidden = layer.hidden(),
          .output = layer.h0.size(1),
          .offsets = offsets.data(),
          .gpu = gpu_of(layer.input)};
}

template <class Params>
RnnCall<Params>::RnnCall(const RnnLayer& layer) : work_(layer.input), offsets_(offsets_of(layer)) {
  static_cast<RnnShape&>(params) = shape_of(layer, offsets_);
  params.x = data_(layer.input);
  params.h0 = data_(layer.h0);
  params.c0 = data_(layer.c0);
  params.w_ih = data_(layer.w_ih);
  params.w_hh = data_(layer.w_hh);
  params.w_hr = data_(layer.w_hr);
  params.arrivals = work_.arrivals();
}

RnnForwardCall::RnnForwardCall(const RnnLayer& layer) : RnnCall(layer) {
  const Tensor& input = layer.input;
  auto sizes = c10::SmallVector<int64_t, 3>(input.sizes());
  sizes.back() = params.output;
  const int64_t width = (layer.save ? layer.kept() : layer.gates()) * params.hidden;
  const auto accumulate = accumulator_options(input);
  y = at::empty(sizes, input.options());
  hn = at::empty(layer.h0.sizes(), y.options());
  cn = at::empty(layer.c0 ? layer.c0->sizes() : at::IntArrayRef{0}, y.options());
  reserve = at::empty({params.rows(), width}, accumulate);
  params.save = layer.save;
  params.b_ih = data_(layer.b_ih);
  params.b_hh = data_(layer.b_hh);
  params.y = y.mutable_data_ptr();
  params.hn = hn.mutable_data_ptr();
  params.cn = cn.mutable_data_ptr();
  params.reserve = reserve.mutable_data_ptr();
  if (layer.c0) params.c = work_({params.batch, params.hidden}, accumulate);
  if (params.projects()) params.out = work_({params.batch, params.hidden}, accumulate);
}

RnnOutputs RnnForwardCall::outputs() const {
  return {y, hn, cn, params.save ? reserve : at::empty({0}, reserve.options())};
}

RnnBackwardCall::RnnBackwardCall(const RnnLayerBackward& layer) : RnnCall(layer) {
  check_rnn_backward(layer);
  const int64_t rows = params.rows(), gates = params.gates() * params.hidden;
  const Inputs inputs = layer.inputs();
  std::array<void*, kInputs> to{};
  for (size_t k = 0; k < kInputs; ++k) {
    if (!layer.wanted[k] || !inputs[k]) continue;
    grads[k] = at::empty(inputs[k]->sizes(), inputs[k]->options());
    to[k] = grads[k].mutable_data_ptr();
  }
  params.y = data_(layer.y);
  params.reserve = data_(layer.reserve);
  params.grad_y = data_(layer.grad_y);
  params.grad_hn = data_(layer.grad_hn);
  params.grad_cn = layer.c0 ? data_(layer.grad_cn) : nullptr;
  params.grad_x = to[0];
  params.grad_h0 = to[1];
  params.grad_c0 = to[2];
  params.grad_w_ih = to[3];
  params.grad_w_hh = to[4];
  params.grad_b_ih = to[5];
  params.grad_b_hh = to[6];
  params.grad_w_hr = to[7];
  const auto options = layer.input.options();
  params.from_x = work_({rows, gates}, options);
  params.from_h = layer.c0 ? params.from_x : work_({rows, gates}, options);
  params.previous = work_({rows, params.output}, options);
  if (params.projects()) params.grad_out = work_({rows, params.output}, options);
  params.carry = work_({params.batch, params.hidden}, accumulator_options(layer.input));
}

}  // namespace pyops

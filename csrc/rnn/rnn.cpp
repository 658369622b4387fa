// lstm, gru and their cells as networks of layer operators. Composite, so that torch.compile and
// torch.export see the layers.
#include "rnn/rnn_layer.h"

namespace pyops {
namespace {

// What is common to the four signatures of torch.lstm and torch.gru.
struct Network {
  const char* op;
  Tensor input;  // (T, B, I), or (N, I) with batch_sizes
  OptionalTensor batch_sizes;
  Tensor hx, cx;  // cx: LSTM
  at::TensorList params;
  bool has_biases;
  int64_t num_layers;
  double dropout;
  bool train, bidirectional;

  bool lstm() const { return cx.defined(); }
  int64_t directions() const { return bidirectional ? 2 : 1; }
  c10::SymInt hidden() const { return (lstm() ? cx : hx).sym_size(2); }
  c10::SymInt output() const { return hx.sym_size(2); }
  bool projects() const { return lstm() && output() != hidden(); }
  int64_t weights() const { return 2 + (has_biases ? 2 : 0) + (projects() ? 1 : 0); }
};

struct NetworkOutputs {
  Tensor y, hn, cn;
};

// Sizes are symbolic, or a compiled graph would serve those of one call alone.
void check_state(const Network& n, const char* name, const Tensor& state, const char* features) {
  TORCH_CHECK(state.dim() == 3, n.op, ": ", name, " must be (num_layers*directions, B, ", features,
              "), got ", state.sym_sizes());
  const c10::SymInt layers = n.num_layers * n.directions();
  const c10::SymInt batch = n.batch_sizes ? n.hx.sym_size(1) : n.input.sym_size(1);
  TORCH_CHECK(state.sym_size(0) == layers && state.sym_size(1) == batch, n.op, ": ", name,
              " must be (num_layers*directions, B, ", features, ")=[", layers, ", ", batch, ", ",
              state.sym_size(2), "], got ", state.sym_sizes());
}

void check_network(const Network& n) {
  const Tensor& x = n.input;
  if (n.batch_sizes) {
    const Tensor& sizes = *n.batch_sizes;
    TORCH_CHECK(x.dim() == 2, n.op, ": packed data must be (N, I), got ", x.sym_sizes());
    TORCH_CHECK(sizes.dim() == 1 && sizes.scalar_type() == at::kLong && sizes.device().is_cpu(),
                n.op, ": batch_sizes must be (T) int64 on the CPU, got ", sizes.sym_sizes(), " ",
                sizes.scalar_type(), " on ", sizes.device());
    TORCH_CHECK_VALUE(sizes.sym_size(0) > 0, n.op, ": expected a sequence length larger than 0");
  } else {
    TORCH_CHECK_INDEX(x.dim() == 3, n.op, ": input must be (T, B, I), got ", x.sym_sizes());
    TORCH_CHECK(x.sym_size(0) > 0, n.op, ": expected a sequence length larger than 0");
  }
  if (n.lstm()) {
    TORCH_CHECK_INDEX(n.hx.dim() == 3 && n.cx.dim() == 3, n.op,
                      ": hx must be two of (num_layers*directions, B, H), got ", n.hx.sym_sizes(),
                      " and ", n.cx.sym_sizes());
    check_state(n, "hx[1]", n.cx, "H");
  }
  check_state(n, n.lstm() ? "hx[0]" : "hx", n.hx, "H_out");
  const int64_t layers = n.num_layers * n.directions();
  TORCH_CHECK(static_cast<int64_t>(n.params.size()) == layers * n.weights(), n.op,
              ": params must be ", n.weights(), " for each of ", layers,
              " layers and directions, got ", n.params.size(), " in all");
  check_device(n.op, n.lstm() ? "hx[0]" : "hx", n.hx, x);
  if (n.lstm()) check_device(n.op, "hx[1]", n.cx, x);
  for (const Tensor& weight : n.params) check_device(n.op, "each of params", weight, x);
}

RnnLayer layer_of(const Network& n, const Tensor& x, int64_t index) {
  auto weight = n.params.begin() + index * n.weights();
  RnnLayer layer;
  layer.input = x;
  layer.h0 = n.hx.select(0, index);
  if (n.lstm()) layer.c0 = n.cx.select(0, index);
  layer.w_ih = *weight++;
  layer.w_hh = *weight++;
  if (n.has_biases) {
    layer.b_ih = *weight++;
    layer.b_hh = *weight++;
  }
  if (n.projects()) layer.w_hr = *weight;
  layer.batch_sizes = n.batch_sizes;
  layer.reverse = index % n.directions() == 1;
  return layer;
}

// Of one layer without a copy, and yet no view: `h.detach_()` between segments of a sequence.
Tensor stack_states(const std::vector<Tensor>& states) {
  if (states.size() != 1) return at::stack(states);
  return at::_unsafe_view_symint(states[0], {1, states[0].sym_size(0), states[0].sym_size(1)});
}

// Of all layers, or of none: dropout between them wants each layer's y as a whole, and only GPUs
// have such a kernel.
std::vector<RnnOutputs> run_stack(const Network& n) {
  const bool drops = n.dropout != 0 && n.train;
  if (!n.input.is_cuda() || n.num_layers < 2 || n.bidirectional || drops) return {};
  std::vector<RnnLayer> layers;
  for (int64_t layer = 0; layer < n.num_layers; ++layer) {
    layers.push_back(layer_of(n, layer == 0 ? n.input : Tensor(), layer));
  }
  return call_rnn_stack(std::move(layers), /*stacked=*/true);
}

// Of a layer's directions, at once where a GPU has such a kernel.
std::vector<RnnOutputs> run_layer(const Network& n, const Tensor& x, int64_t layer) {
  const int64_t first = layer * n.directions();
  if (!n.bidirectional) return {call_rnn_layer(layer_of(n, x, first))};
  const std::vector<RnnLayer> both{layer_of(n, x, first), layer_of(n, x, first + 1)};
  if (x.is_cuda()) {
    std::vector<RnnOutputs> results = call_rnn_stack(both, /*stacked=*/false);
    if (!results.empty()) return results;
  }
  return {call_rnn_layer(both[0]), call_rnn_layer(both[1])};
}

NetworkOutputs run(const Network& n) {
  check_network(n);
  const std::vector<RnnOutputs> stack = run_stack(n);
  Tensor x = n.input;
  std::vector<Tensor> hn, cn;
  for (int64_t layer = 0; layer < n.num_layers; ++layer) {
    std::vector<Tensor> outputs;
    for (const auto& [y, h, c, reserve] :
         stack.empty() ? run_layer(n, x, layer) : std::vector{stack[static_cast<size_t>(layer)]}) {
      outputs.push_back(y);
      hn.push_back(h);
      if (n.lstm()) cn.push_back(c);
    }
    x = n.bidirectional ? at::cat(outputs, -1) : outputs[0];
    if (n.dropout != 0 && layer + 1 < n.num_layers) x = at::dropout(x, n.dropout, n.train);
  }
  return {x, stack_states(hn), n.lstm() ? stack_states(cn) : Tensor()};
}

// Other devices, and nested tensors, have networks of their own. What else is not ours the layers
// know.
bool is_elsewhere(const char* op, const Tensor& input) {
  const at::Device device = input.device();
  const bool on_gpu = device.is_cuda() && rnn_devices() == Devices::kCpuAndGpu;
  const bool here = device.is_cpu() || device.is_meta() || on_gpu;
  if (here && !input.is_nested()) return false;
  note_native(op, {input}, here ? "layout" : "device");
  return true;
}

using Lstm = std::tuple<Tensor, Tensor, Tensor>;
using Gru = std::tuple<Tensor, Tensor>;

Lstm lstm_input(const Tensor& input, at::TensorList hx, at::TensorList params, bool has_biases,
                int64_t num_layers, double dropout, bool train, bool bidirectional,
                bool batch_first) {
  TORCH_CHECK(hx.size() == 2, "lstm: hx must be the two states (h, c), got ", hx.size());
  if (is_elsewhere("lstm", input)) {
    return at::lstm(input, hx, params, has_biases, num_layers, dropout, train, bidirectional,
                    batch_first);
  }
  TORCH_CHECK_INDEX(input.dim() == 3, "lstm: input must have 3 dimensions, got ",
                    input.sym_sizes());
  const auto [y, hn, cn] =
      run({"lstm", batch_first ? input.transpose(0, 1) : input, std::nullopt, hx[0], hx[1], params,
           has_biases, num_layers, dropout, train, bidirectional});
  return {batch_first ? y.transpose(0, 1) : y, hn, cn};
}

// As native: its fused kernel, where it takes one, runs in the lower precision as a whole, states
// included.
Lstm lstm_input_autocast(const Tensor& input, at::TensorList hx, at::TensorList params,
                         bool has_biases, int64_t num_layers, double dropout, bool train,
                         bool bidirectional, bool batch_first) {
  const auto device = input.device().type();
  const auto cast = [&](const auto& t) {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), t, device);
  };
  const bool projects = hx.size() == 2 && hx[0].sym_sizes().back() != hx[1].sym_sizes().back();
  const bool fused = at::globalContext().userEnabledMkldnn() && !projects && input.sym_numel() != 0;
  if (!fused) {
    return lstm_input(input, hx, params, has_biases, num_layers, dropout, train, bidirectional,
                      batch_first);
  }
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  return lstm_input(cast(input), cast(hx), cast(params), has_biases, num_layers, dropout, train,
                    bidirectional, batch_first);
}

Lstm lstm_data(const Tensor& data, const Tensor& batch_sizes, at::TensorList hx,
               at::TensorList params, bool has_biases, int64_t num_layers, double dropout,
               bool train, bool bidirectional) {
  TORCH_CHECK(hx.size() == 2, "lstm: hx must be the two states (h, c), got ", hx.size());
  if (is_elsewhere("lstm", data)) {
    return at::lstm(data, batch_sizes, hx, params, has_biases, num_layers, dropout, train,
                    bidirectional);
  }
  const auto [y, hn, cn] = run({"lstm", data, batch_sizes, hx[0], hx[1], params, has_biases,
                                num_layers, dropout, train, bidirectional});
  return {y, hn, cn};
}

Gru gru_input(const Tensor& input, const Tensor& hx, at::TensorList params, bool has_biases,
              int64_t num_layers, double dropout, bool train, bool bidirectional,
              bool batch_first) {
  if (is_elsewhere("gru", input)) {
    return at::gru(input, hx, params, has_biases, num_layers, dropout, train, bidirectional,
                   batch_first);
  }
  TORCH_CHECK_INDEX(input.dim() == 3, "gru: input must have 3 dimensions, got ", input.sym_sizes());
  const auto [y, hn, cn] =
      run({"gru", batch_first ? input.transpose(0, 1) : input, std::nullopt, hx, Tensor(), params,
           has_biases, num_layers, dropout, train, bidirectional});
  return {batch_first ? y.transpose(0, 1) : y, hn};
}

Gru gru_data(const Tensor& data, const Tensor& batch_sizes, const Tensor& hx, at::TensorList params,
             bool has_biases, int64_t num_layers, double dropout, bool train, bool bidirectional) {
  if (is_elsewhere("gru", data)) {
    return at::gru(data, batch_sizes, hx, params, has_biases, num_layers, dropout, train,
                   bidirectional);
  }
  const auto [y, hn, cn] = run({"gru", data, batch_sizes, hx, Tensor(), params, has_biases,
                                num_layers, dropout, train, bidirectional});
  return {y, hn};
}

// What native checks, said in its words behind ours; the layer checks the rest.
void check_cell(const char* op, const RnnLayer& cell) {
  const Tensor& x = cell.input;
  TORCH_CHECK_INDEX(x.dim() >= 2, op, ": input must be (B, I), got ", x.sym_sizes());
  TORCH_CHECK(x.dim() == 2, op, ": input must be (B, I), got ", x.sym_sizes());
  const char* h = cell.c0 ? "hx[0]" : "hx";
  check_device(op, h, cell.h0, x);
  check_device(op, "w_ih", cell.w_ih, x);
  check_device(op, "w_hh", cell.w_hh, x);
  if (cell.c0) check_device(op, "hx[1]", *cell.c0, x);
  if (cell.b_ih) check_device(op, "b_ih", *cell.b_ih, x);
  if (cell.b_hh) check_device(op, "b_hh", *cell.b_hh, x);
  const auto check_rank = [&](const char* name, const Tensor& t, int64_t rank, const char* legend) {
    TORCH_CHECK_INDEX(t.dim() >= rank, op, ": ", name, " must be ", legend, ", got ",
                      t.sym_sizes());
  };
  check_rank(h, cell.h0, 1, "(B, H)");
  if (cell.c0) check_rank("hx[1]", *cell.c0, 1, "(B, H)");
  check_rank("w_ih", cell.w_ih, 2, cell.c0 ? "(4*H, I)" : "(3*H, I)");
  check_rank("w_hh", cell.w_hh, 2, cell.c0 ? "(4*H, H)" : "(3*H, H)");
  if (cell.w_ih.dim() != 2 || cell.w_hh.dim() != 2) return;
  const c10::SymInt batch = x.sym_size(0), features = x.sym_size(1), hidden = cell.w_hh.sym_size(1);
  TORCH_CHECK(features == cell.w_ih.sym_size(1), op, ": w_ih must be (", cell.gates(),
              "*H, I) with I=", features, ", got ", cell.w_ih.sym_sizes(),
              ": input has inconsistent input_size: got ", features, " expected ",
              cell.w_ih.sym_size(1));
  int64_t index = 0;
  for (const Tensor* state : {&cell.h0, cell.c0 ? &*cell.c0 : nullptr}) {
    if (state == nullptr || state->dim() != 2) continue;
    const char* name = index == 0 ? h : "hx[1]";
    TORCH_CHECK(state->sym_size(0) == batch, op, ": ", name, " must be (B, H) with B=", batch,
                ", got ", state->sym_sizes(), ": Input batch size ", batch, " doesn't match hidden",
                index, " batch size ", state->sym_size(0));
    TORCH_CHECK(state->sym_size(1) == hidden, op, ": ", name, " must be (B, H) with H=", hidden,
                ", got ", state->sym_sizes(), ": hidden", index,
                " has inconsistent hidden_size: got ", state->sym_size(1), ", expected ", hidden);
    ++index;
  }
}

// One step: a layer without a dimension of time.
RnnOutputs run_cell(const char* op, const RnnLayer& cell) {
  check_cell(op, cell);
  return call_rnn_layer(cell);
}

Gru lstm_cell(const Tensor& input, at::TensorList hx, const Tensor& w_ih, const Tensor& w_hh,
              const OptionalTensor& b_ih, const OptionalTensor& b_hh) {
  TORCH_CHECK(hx.size() == 2, "lstm_cell: hx must be the two states (h, c), got ", hx.size());
  if (is_elsewhere("lstm_cell", input)) {
    return at::lstm_cell(input, hx, w_ih, w_hh, b_ih, b_hh);
  }
  RnnOutputs out = run_cell("lstm_cell", {input, hx[0], hx[1], w_ih, w_hh, b_ih, b_hh});
  return {std::get<0>(out), std::get<2>(out)};
}

Tensor gru_cell(const Tensor& input, const Tensor& hx, const Tensor& w_ih, const Tensor& w_hh,
                const OptionalTensor& b_ih, const OptionalTensor& b_hh) {
  if (is_elsewhere("gru_cell", input)) return at::gru_cell(input, hx, w_ih, w_hh, b_ih, b_hh);
  const Tensor y =
      std::get<0>(run_cell("gru_cell", {input, hx, std::nullopt, w_ih, w_hh, b_ih, b_hh}));
  // Native's last operation on the CPU is elementwise on hx, and so the result has its strides.
  return hx.is_cuda() || hx.is_contiguous() ? y : at::empty_like(hx).copy_(y);
}

void implement(torch::Library& m) {
  m.impl("lstm.input", lstm_input);
  m.impl("lstm.data", lstm_data);
  m.impl("gru.input", gru_input);
  m.impl("gru.data", gru_data);
  m.impl("lstm_cell", lstm_cell);
  m.impl("gru_cell", gru_cell);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def(
      "lstm.input(Tensor input, Tensor[] hx, Tensor[] params, bool has_biases, int num_layers, "
      "float dropout, bool train, bool bidirectional, bool batch_first) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "lstm.data(Tensor data, Tensor batch_sizes, Tensor[] hx, Tensor[] params, bool has_biases, "
      "int num_layers, float dropout, bool train, bool bidirectional) -> (Tensor, Tensor, Tensor)");
  m.def(
      "gru.input(Tensor input, Tensor hx, Tensor[] params, bool has_biases, int num_layers, "
      "float dropout, bool train, bool bidirectional, bool batch_first) -> (Tensor, Tensor)");
  m.def(
      "gru.data(Tensor data, Tensor batch_sizes, Tensor hx, Tensor[] params, bool has_biases, "
      "int num_layers, float dropout, bool train, bool bidirectional) -> (Tensor, Tensor)");
  m.def(
      "lstm_cell(Tensor input, Tensor[] hx, Tensor w_ih, Tensor w_hh, Tensor? b_ih=None, "
      "Tensor? b_hh=None) -> (Tensor, Tensor)");
  m.def(
      "gru_cell(Tensor input, Tensor hx, Tensor w_ih, Tensor w_hh, Tensor? b_ih=None, "
      "Tensor? b_hh=None) -> Tensor");
}
TORCH_LIBRARY_IMPL(pyops, CompositeImplicitAutograd, m) { implement(m); }
// functorch asks each composite for a rule of its own.
TORCH_LIBRARY_IMPL(pyops, FuncTorchBatched, m) { implement(m); }
TORCH_LIBRARY_IMPL(pyops, PythonTLSSnapshot, m) {
  register_for_subclasses(
      m, {"lstm.input", "lstm.data", "gru.input", "gru.data", "lstm_cell", "gru_cell"});
}
TORCH_LIBRARY_IMPL(pyops, AutocastCPU, m) { m.impl("lstm.input", lstm_input_autocast); }
// As native, whose fused kernels there run in the lower precision as a whole.
TORCH_LIBRARY_IMPL(pyops, AutocastCUDA, m) {
  if (rnn_devices() == Devices::kCpuAndGpu) {
    register_autocast(
        m, {"lstm.input", "lstm.data", "gru.input", "gru.data", "lstm_cell", "gru_cell"});
  }
}

}  // namespace pyops

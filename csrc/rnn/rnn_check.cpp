#include "rnn/rnn_layer_signature.h"

namespace pyops {

void check_rnn_layer(const RnnLayer& layer) {
  const char* op = layer.name();
  const Tensor &x = layer.input, &h0 = layer.h0;
  TORCH_CHECK(x.dim() == (layer.batch_sizes || layer.one_step() ? 2 : 3), op,
              ": input must be (T, B, I), packed (N, I), or (B, I) for a cell, got ",
              x.sym_sizes());
  TORCH_CHECK(h0.dim() == 2 && (!layer.c0 || layer.c0->dim() == 2), op,
              ": the hidden state must be (B, H), got ", h0.sym_sizes());
  TORCH_CHECK(layer.w_hr || !layer.c0 || h0.sym_size(1) == layer.c0->sym_size(1), op,
              ": h and c must be of one size without w_hr, got ", h0.sym_sizes(), " and ",
              layer.c0 ? layer.c0->sym_sizes() : h0.sym_sizes());
  const c10::SymInt batch = layer.batch_sizes ? h0.sym_size(0) : x.sym_size(-2);
  const c10::SymInt output = h0.sym_size(1), hidden = layer.c0 ? layer.c0->sym_size(1) : output;
  const c10::SymInt rows = layer.gates() * hidden;
  const auto check = [&](const char* name, const Tensor& t, const char* legend,
                         c10::SymIntArrayRef sizes) {
    TORCH_CHECK(t.sym_sizes() == sizes, op, ": ", name, " must be ", legend, "=", sizes, ", got ",
                t.sym_sizes());
    check_same_kind(op, name, t, x);
  };
  const bool lstm = layer.c0.has_value();
  check(lstm ? "hx[0]" : "hx", h0, "(B, H_out)", {batch, output});
  if (lstm) check("hx[1]", *layer.c0, "(B, H)", {batch, hidden});
  check("w_ih", layer.w_ih, lstm ? "(4*H, I)" : "(3*H, I)", {rows, x.sym_size(-1)});
  check("w_hh", layer.w_hh, lstm ? "(4*H, H_out)" : "(3*H, H)", {rows, output});
  if (layer.b_ih) check("b_ih", *layer.b_ih, lstm ? "(4*H)" : "(3*H)", {rows});
  if (layer.b_hh) check("b_hh", *layer.b_hh, lstm ? "(4*H)" : "(3*H)", {rows});
  if (layer.w_hr) check("w_hr", *layer.w_hr, "(H_out, H)", {output, hidden});
}

void check_rnn_backward(const RnnLayerBackward& layer) {
  const Tensor& x = layer.input;
  c10::DimVector of_y(x.sizes());
  of_y.back() = layer.h0.size(1);
  const int64_t rows = c10::multiply_integers(x.sizes().slice(0, x.sizes().size() - 1));
  const auto check = [&](const char* name, const OptionalTensor& t, at::IntArrayRef sizes,
                         at::ScalarType type) {
    TORCH_CHECK(!t || (t->sizes() == sizes && t->scalar_type() == type), layer.backward_name(),
                ": ", name, " must be ", sizes, " ", type, ", as a forward with save=True gives it",
                ", got ", t->sizes(), " ", t->scalar_type());
    TORCH_CHECK(!t || t->device() == x.device(), layer.backward_name(), ": ", name,
                " must be on the input's device ", x.device(), ", got ", t->device());
  };
  const at::ScalarType type = x.scalar_type();
  check("output", layer.y, of_y, type);
  check("reserve", layer.reserve, {rows, layer.kept() * layer.hidden()},
        c10::typeMetaToScalarType(accumulator_options(x).dtype()));
  check("grad_output", layer.grad_y, of_y, type);
  check("grad_hn", layer.grad_hn, layer.h0.sizes(), type);
  if (layer.c0) check("grad_cn", layer.grad_cn, layer.c0->sizes(), type);
}

}  // namespace pyops

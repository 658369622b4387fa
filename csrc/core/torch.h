// What every operator's glue needs from PyTorch: when to hand over to the native operator, choosing
// and recording a kernel, autocast. Kernels see none of it.
#pragma once

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include <initializer_list>
#include <optional>
#include <string>

#include "core/candidates.h"
#include "core/explain.h"
#include "core/gpu.h"
#include "core/precision.h"

namespace pyops {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// A tensor that is looked at and not kept, where a copy would count references; null if absent.
class TensorRef {
 public:
  TensorRef(const Tensor& t) : tensor_(t.defined() ? &t : nullptr) {}
  TensorRef(const OptionalTensor& t) : TensorRef(t ? *t : kNone) {}

  explicit operator bool() const { return tensor_ != nullptr; }
  const Tensor& operator*() const { return *tensor_; }

 private:
  inline static const Tensor kNone;

  const Tensor* tensor_;
};
using Tensors = std::initializer_list<TensorRef>;

// An undefined tensor stands for an absent optional one.
inline Tensor value_or_undefined(const OptionalTensor& t) { return t.value_or(Tensor()); }

Dtype dtype_of(const Tensor& t);
// Of a tensor beside t, of the type that kernels sum in.
at::TensorOptions accumulator_options(const Tensor& t);

// PyTorch's own switches for the tensor's device: torch.set_float32_matmul_precision,
// torch.backends.mkldnn.*.fp32_precision, torch.backends.cuda.matmul and .cudnn.*.
Precision float32_precision(at::Float32Op op, const Tensor& t);

// Where an operator has kernels.
enum class Devices { kCpu, kCpuAndGpu };

template <class Params, size_t kRows>
constexpr Devices devices_of(const Candidate<Params> (&table)[kRows]) {
  for (const auto& row : table) {
    if (row.place.is_gpu()) return Devices::kCpuAndGpu;
  }
  return Devices::kCpu;
}

// Why the whole call belongs to PyTorch's own operator (functorch transform, forward-mode AD, a
// dtype, device, layout or subclass no kernel of ours takes); null when it is ours.
const char* native_reason(Tensors tensors, Devices devices = Devices::kCpu);

// The reason above, noted in the explain() log: `if (goes_native("conv2d", {x, w})) return
// at::...`.
bool goes_native(const char* op, Tensors tensors, Devices devices = Devices::kCpu);

// Notes in the explain() log why PyTorch's own operator has the call.
void note_native(const char* op, Tensors tensors, const char* reason);

// Whether sizes and dtypes alone are asked for, by a meta tensor or a tracer: no kernel is called,
// and none checks what it is given.
bool is_abstract(const Tensor& t);

// RuntimeError unless t, called `name`, has x's dtype and device.
void check_same_kind(const char* op, const char* name, const Tensor& t, const Tensor& x);
// Of the device alone: where tensors on several meet, one on meta would have its kernel answer,
// which computes nothing.
void check_device(const char* op, const char* name, const Tensor& t, const Tensor& x);

// Whether autograd must record the call.
bool needs_grad(Tensors tensors);

// An operator of ours by its name, whose schema C++ sees as Signature.
template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const std::string& name, const char* overload = "") {
  const std::string full = "pyops::" + name;
  return c10::Dispatcher::singleton().findSchemaOrThrow(full.c_str(), overload).typed<Signature>();
}

void record_call(const char* op, const char* kernel, Tensors tensors,
                 std::vector<Rejection> rejected);

// The device of a call; an exception when its tensors are on several.
Target target_of(const char* op, Tensors tensors);

// Chooses from the table and records the choice; `tensors` are shown by explain().
template <class Params, size_t kRows>
const Candidate<Params>& choose(const char* op, const Candidate<Params> (&table)[kRows],
                                const Params& params, Tensors tensors) {
  const Target target = target_of(op, tensors);
  if (!explaining()) return pick(table, params, target);
  std::vector<Rejection> rejected;
  const auto& row = pick(table, params, target, &rejected);
  record_call(op, row.kernel, tensors, std::move(rejected));
  return row;
}

// Of a call on the GPU that is current, what the row's kernel keeps besides its results.
template <class Params>
Tensor give_workspace(const Candidate<Params>& row, Params& params, const Tensor& like) {
  if constexpr (requires { params.workspace; }) {
    if (row.workspace != nullptr) {
      Tensor workspace = at::empty({row.workspace(params)}, like.options().dtype(at::kByte));
      params.workspace = workspace.mutable_data_ptr();
      return workspace;
    }
  }
  return {};
}

// Chooses and runs: on the GPU, in PyTorch's current stream.
template <class Params, size_t kRows>
void serve(const char* op, const Candidate<Params> (&table)[kRows], const Params& params,
           Tensors tensors) {
  const auto& row = choose(op, table, params, tensors);
  if constexpr (kBuiltWithCuda) {
    if (row.place.is_gpu()) {
      const Tensor& first = **tensors.begin();
      return launch_on_gpu(op, row.kernel, first, [&](cudaStream_t stream) {
        Params given = params;
        const Tensor workspace = give_workspace(row, given, first);
        return row.run.launch(given, stream);
      });
    }
  }
  row.run(params);
}

// Autocast rule of compute-bound operators: float tensors are cast to the autocast dtype. Boxed, so
// that one function serves every schema: register it under AutocastCPU and AutocastCUDA.
void autocast_to_lower_precision(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                                 torch::jit::Stack* stack);
// For operators that run in whatever dtype they get.
void register_autocast(torch::Library& library, std::initializer_list<const char*> ops);

// For operators whose CPU kernel hands over what is not ours: register under PythonTLSSnapshot, the
// first key of a subclass. In inference mode no autograd kernel decides before it is asked about an
// operator that it may not know.
void register_for_subclasses(torch::Library& library, std::initializer_list<const char*> ops);

// `y[0]·grad[0] + …` differentiated again: gradients of `outputs` for `inputs` as a graph.
// Operators without a closed differentiable backward recompute their native composite and call
// this.
std::vector<Tensor> differentiable_grad(at::TensorList outputs, at::TensorList inputs,
                                        at::TensorList grad_outputs);

}  // namespace pyops

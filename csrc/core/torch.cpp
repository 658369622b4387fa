#include "core/torch.h"

#include <ATen/FuncTorchTLS.h>
#include <ATen/core/PythonFallbackKernel.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/ScalarType.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/autograd.h>

namespace pyops {
namespace {

bool supported_dtype(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
    case at::kFloat:
    case at::kBFloat16:
    case at::kHalf:
      return true;
    default:
      return false;
  }
}

// The only question functorch answers without its private headers; it answers "no" by throwing. Its
// state outlives the transforms of a thread, so that it exists means nothing yet.
bool inside_functorch_transform() {
  const auto& state = at::functorch::functorchTLSAccessor();
  if (state == nullptr) return false;
  try {
    state->checkSupportsCppAutogradFunction();
    return false;
  } catch (const c10::Error&) {
    return true;
  }
}

const char* device_reason(at::Device device, Devices devices) {
  if (device.is_cpu() || device.is_meta()) return nullptr;
  if (!device.is_cuda() || devices == Devices::kCpu) return "device";
  if constexpr (kBuiltWithCuda) {
    const Target target = target_of_gpu(device);
    if (target.is_gpu() && target.capability < kLeastCapability) return "GPU older than sm_80";
  }
  return nullptr;
}

const char* native_reason_of(const Tensor& t, Devices devices) {
  if (t._fw_grad(/*level=*/0).defined()) return "forward-mode AD";
  if (const char* reason = device_reason(t.device(), devices)) return reason;
  if (t.layout() != at::kStrided) return "layout";
  if (!supported_dtype(t.scalar_type())) return "dtype";
  // A tracer's tensors come with an active mode and must see our operators; a subclass does not.
  if (t.key_set().has(c10::DispatchKey::Python) &&
      !c10::impl::TorchDispatchModeTLS::any_modes_set())
    return "tensor subclass";
  return nullptr;
}

void enter_with_subclass(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                         torch::jit::Stack* stack) {
  if (c10::InferenceMode::is_enabled() && !c10::impl::TorchDispatchModeTLS::any_modes_set()) {
    return op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  }
  // As PyTorch's own kernel of this key.
  const at::impl::MaybeSetTLSOnEntryGuard guard;
  constexpr c10::DispatchKeySet kAfter(c10::DispatchKeySet::FULL_AFTER,
                                       c10::DispatchKey::PythonTLSSnapshot);
  op.redispatchBoxed(keys & kAfter, stack);
}

}  // namespace

Dtype dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kDouble:
      return Dtype::kFloat64;
    case at::kFloat:
      return Dtype::kFloat32;
    case at::kBFloat16:
      return Dtype::kBFloat16;
    case at::kHalf:
      return Dtype::kFloat16;
    default:
      TORCH_INTERNAL_ASSERT(false, "pyops: no kernel takes ", t.scalar_type());
  }
}

at::TensorOptions accumulator_options(const Tensor& t) {
  return t.options().dtype(t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

Precision float32_precision(at::Float32Op op, const Tensor& t) {
  // TF32 is what native convolves in on a GPU unless told otherwise; its products are float32's.
  const auto backend = t.is_cuda() ? at::Float32Backend::CUDA : at::Float32Backend::MKLDNN;
  switch (at::globalContext().float32Precision(backend, op)) {
    case at::Float32Precision::TF32:
      return Precision::kHigh;
    case at::Float32Precision::BF16:
      return Precision::kMedium;
    default:
      return Precision::kHighest;
  }
}

const char* native_reason(Tensors tensors, Devices devices) {
  if (inside_functorch_transform()) return "functorch transform";
  for (const TensorRef t : tensors) {
    if (!t) continue;
    if (const char* reason = native_reason_of(*t, devices)) return reason;
  }
  return nullptr;
}

bool goes_native(const char* op, Tensors tensors, Devices devices) {
  const char* reason = native_reason(tensors, devices);
  if (reason == nullptr) return false;
  note_native(op, tensors, reason);
  return true;
}

void note_native(const char* op, Tensors tensors, const char* reason) {
  if (explaining()) record_call(op, "native", tensors, {{"every kernel of ours", reason}});
}

bool is_abstract(const Tensor& t) {
  return t.is_meta() || t.key_set().has(c10::DispatchKey::Python);
}

void check_same_kind(const char* op, const char* name, const Tensor& t, const Tensor& x) {
  TORCH_CHECK(t.scalar_type() == x.scalar_type(), op, ": ", name, " must have the input's dtype ",
              x.scalar_type(), ", got ", t.scalar_type());
  check_device(op, name, t, x);
}

void check_device(const char* op, const char* name, const Tensor& t, const Tensor& x) {
  TORCH_CHECK(t.device() == x.device(), op, ": ", name, " must be on the input's device ",
              x.device(), ", got ", t.device());
}

bool needs_grad(Tensors tensors) {
  if (!at::GradMode::is_enabled()) return false;
  for (const TensorRef t : tensors) {
    if (t && (*t).requires_grad()) return true;
  }
  return false;
}

Target target_of(const char* op, Tensors tensors) {
  if constexpr (kBuiltWithCuda) {
    const at::Device device = (**tensors.begin()).device();
    for (const TensorRef t : tensors) {
      TORCH_CHECK(!t || (*t).device() == device, op, ": every tensor must be on ", device,
                  ", where the first is, got one on ", (*t).device());
    }
    if (device.is_cuda()) return target_of_gpu(device);
  }
  return {};
}

void record_call(const char* op, const char* kernel, Tensors tensors,
                 std::vector<Rejection> rejected) {
  CallRecord record;
  record.op = op;
  record.kernel = kernel;
  record.rejected = std::move(rejected);
  for (const TensorRef t : tensors) {
    if (!t) continue;
    if (record.dtype.empty()) record.dtype = c10::getDtypeNames((*t).scalar_type()).first;
    if (!(*t).is_nested()) record.shapes.push_back((*t).sizes().vec());  // which have several
  }
  explain_record(std::move(record));
}

void autocast_to_lower_precision(const c10::OperatorHandle& op, c10::DispatchKeySet,
                                 torch::jit::Stack* stack) {
  const auto arguments = torch::jit::last(*stack, op.schema().arguments().size());
  auto device = at::kCPU;
  for (const c10::IValue& value : arguments) {
    if (!value.isTensor() || !value.toTensor().defined()) continue;
    device = value.toTensor().device().type();
    break;  // what follows may be lengths, which stay on the CPU
  }
  const auto key = at::autocast::get_autocast_dispatch_key_from_device_type(device);
  const auto dtype = at::autocast::get_autocast_dtype(device);
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(key);
  const auto first = stack->end() - static_cast<std::ptrdiff_t>(arguments.size());
  for (auto it = first; it != stack->end(); ++it) {
    if (it->isTensor()) {
      *it = at::autocast::cached_cast(dtype, it->toTensor(), device);
    } else if (it->isTensorList()) {
      const std::vector<Tensor> tensors = it->toTensorVector();
      *it = at::autocast::cached_cast(dtype, at::TensorList(tensors), device);
    }
  }
  op.callBoxed(stack);
}

void register_autocast(torch::Library& library, std::initializer_list<const char*> ops) {
  for (const char* op : ops) {
    library.impl(op, torch::CppFunction::makeFromBoxedFunction<&autocast_to_lower_precision>());
  }
}

void register_for_subclasses(torch::Library& library, std::initializer_list<const char*> ops) {
  for (const char* op : ops) {
    library.impl(op, torch::CppFunction::makeFromBoxedFunction<&enter_with_subclass>());
  }
}

std::vector<Tensor> differentiable_grad(at::TensorList outputs, at::TensorList inputs,
                                        at::TensorList grad_outputs) {
  // Tracers call us from Python, and the engine must not wait for threads that want its lock.
  std::optional<pybind11::gil_scoped_release> unlocked;
  if (PyGILState_Check()) unlocked.emplace();
  return torch::autograd::grad(outputs.vec(), inputs.vec(), grad_outputs.vec(),
                               /*retain_graph=*/true, /*create_graph=*/true, /*allow_unused=*/true);
}

}  // namespace pyops

// A GPU for a build of PyTorch without CUDA. Its memory is the machine's, and its tensors are
// CUDA's in all that PyTorch asks of them: dispatch, autograd's threads, autocast, devices that
// differ. What is not ours runs by the CPU's kernel, on tensors that lie in the same memory.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/FakeGuardImpl.h>
#include <torch/library.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

using at::Device;
using at::Tensor;
using c10::IValue;
using c10::Storage;
using c10::TensorImpl;

// Memory between two strips that nobody may write to: a kernel that reads them gets NaN, and one
// that wrote there is found when the memory is freed.
class Fenced final : public c10::Allocator {
 public:
  explicit Fenced(at::DeviceType type) : type_(type) {}

  at::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &release, device()};
    const size_t rounded = (bytes + kFence - 1) / kFence * kFence;
    char* block = static_cast<char*>(std::aligned_alloc(kFence, rounded + 3 * kFence));
    TORCH_CHECK(block != nullptr, "emulated GPU: out of memory");
    std::memcpy(block, &bytes, sizeof bytes);
    char* data = block + 2 * kFence;
    std::memset(block + kFence, kUntouched, kFence);
    std::memset(data + bytes, kUntouched, rounded - bytes + kFence);
    return {data, data, &release, device()};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  static constexpr size_t kFence = 512;
  static constexpr int kUntouched = 0xff;

  Device device() const {
    if (type_ == at::kCPU) return at::kCPU;
    return {type_, c10::impl::FakeGuardImpl<at::kCUDA>::getDeviceIndex()};
  }

  static void release(void* data) {
    if (data == nullptr) return;
    char* block = static_cast<char*>(data) - 2 * kFence;
    size_t bytes = 0;
    std::memcpy(&bytes, block, sizeof bytes);
    const size_t end = 3 * kFence + (bytes + kFence - 1) / kFence * kFence;
    for (size_t i = kFence; i < end; ++i) {
      if (i == 2 * kFence) i += bytes;
      if (static_cast<unsigned char>(block[i]) == kUntouched) continue;
      std::fprintf(stderr, "emulated GPU: byte %ld of a tensor of %zu was written\n",
                   static_cast<long>(i) - static_cast<long>(2 * kFence), bytes);
      std::abort();
    }
    std::free(block);
  }

  at::DeviceType type_;
};

Fenced cpu_memory(at::kCPU), gpu_memory(at::kCUDA);

// The same memory for another device, alive as long as that.
Storage seen_from(Device device, Storage storage, c10::Allocator* allocator) {
  auto* owner = new Storage(std::move(storage));
  const auto drop = [](void* context) { delete static_cast<Storage*>(context); };
  at::DataPtr data(const_cast<void*>(owner->data()), owner, drop, device);
  return {Storage::use_byte_size_t(), owner->nbytes(), std::move(data), allocator, true};
}

// A tensor of another device in that memory, as a view is made: in inference mode, too, only what
// comes from an inference tensor is one.
Tensor lying_as(const Tensor& t, Storage storage, c10::DispatchKey device) {
  using c10::DispatchKey, c10::DispatchKeySet;
  constexpr DispatchKeySet kMeanings(
      {DispatchKey::ZeroTensor, DispatchKey::Conjugate, DispatchKey::Negative});
  const auto backend = c10::toBackendComponent(device);
  DispatchKeySet keys = DispatchKeySet(device) | (t.key_set() & kMeanings) |
                        c10::getAutocastRelatedKeySetFromBackend(backend);
  if (!t.is_inference()) keys = keys | c10::getAutogradRelatedKeySetFromBackend(backend);
  Tensor made =
      at::detail::make_tensor<TensorImpl>(TensorImpl::VIEW, std::move(storage), keys, t.dtype());
  auto* impl = made.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  if (t.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  return made;
}

// One call of an operator: its tensors there and back.
class Crossing {
 public:
  IValue there(IValue value) {
    if (value.isTensor()) return there(value.toTensor());
    if (value.isTensorList()) {
      c10::List<Tensor> all;
      for (const Tensor& t : value.toTensorVector()) all.push_back(there(t));
      return all;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> all;
      for (const std::optional<Tensor>& t : value.toOptionalTensorVector()) {
        all.push_back(t ? std::optional<Tensor>(there(*t)) : std::nullopt);
      }
      return all;
    }
    if (value.isDevice() && value.toDevice().is_cuda()) {
      if (value.toDevice().has_index()) device_ = value.toDevice();
      return Device(at::kCPU);
    }
    return value;
  }

  IValue back(IValue value) {
    if (value.isTensor()) return back(value.toTensor());
    if (value.isTensorList()) {
      c10::List<Tensor> all;
      for (const Tensor& t : value.toTensorVector()) all.push_back(back(t));
      return all;
    }
    return value;
  }

  // What the operator did to the sizes and the memory of its arguments.
  void settle() {
    for (auto& [gpu, cpu] : tensors_) {
      if (cpu.storage().data() != gpu.storage().data()) {
        auto* storage = gpu.storage().unsafeGetStorageImpl();
        Storage grown = seen_from(gpu.device(), cpu.storage(), &gpu_memory);
        storage->set_nbytes(grown.nbytes());
        storage->set_data_ptr_noswap(std::move(grown.mutable_data_ptr()));
      }
      if (cpu.sizes() != gpu.sizes() || cpu.strides() != gpu.strides()) {
        gpu.unsafeGetTensorImpl()->set_sizes_and_strides(cpu.sizes(), cpu.strides(),
                                                         cpu.storage_offset());
      }
    }
  }

 private:
  Tensor there(const Tensor& t) {
    if (!t.defined() || !t.is_cuda()) return t;
    for (const auto& [gpu, cpu] : tensors_) {
      if (gpu.is_same(t)) return cpu;
    }
    device_ = t.device();
    auto& [original, storage] = storages_[t.storage().unsafeGetStorageImpl()];
    if (!storage) {
      original = t.storage();
      storage = seen_from(at::kCPU, t.storage(), &cpu_memory);
    }
    tensors_.emplace_back(t, lying_as(t, storage, c10::DispatchKey::CPU));
    return tensors_.back().second;
  }

  Tensor back(const Tensor& t) {
    if (!t.defined() || !t.is_cpu()) return t;
    for (const auto& [gpu, cpu] : tensors_) {
      if (cpu.is_same(t)) return gpu;
    }
    for (const auto& entry : storages_) {
      const auto& [original, storage] = entry.second;
      if (storage.is_alias_of(t.storage())) return lying_as(t, original, c10::DispatchKey::CUDA);
    }
    return lying_as(t, seen_from(device_, t.storage(), &gpu_memory), c10::DispatchKey::CUDA);
  }

  Device device_{at::kCUDA, c10::impl::FakeGuardImpl<at::kCUDA>::getDeviceIndex()};  // of results
  std::vector<std::pair<Tensor, Tensor>> tensors_;
  std::unordered_map<c10::StorageImpl*, std::pair<Storage, Storage>> storages_;
};

void run_on_cpu(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  Crossing crossing;
  const auto arguments = static_cast<std::ptrdiff_t>(op.schema().arguments().size());
  for (auto it = stack->end() - arguments; it != stack->end(); ++it) *it = crossing.there(*it);
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  crossing.settle();
  const auto returns = static_cast<std::ptrdiff_t>(op.schema().returns().size());
  for (auto it = stack->end() - returns; it != stack->end(); ++it) *it = crossing.back(*it);
}

// By these PyTorch knows that there is a GPU.
struct Hooks final : at::CUDAHooksInterface {
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(at::DeviceIndex) const override { return true; }
};
static_assert(sizeof(Hooks) == sizeof(at::CUDAHooksInterface));

// The one argument that is memory itself.
Tensor& set_storage(Tensor& self, Storage source) {
  const auto count = static_cast<int64_t>(source.nbytes() / self.itemsize()), stride = int64_t{1};
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(at::IntArrayRef(count), at::IntArrayRef(stride),
                                                    0);
  return self;
}

const bool registered = [] {
  // PyTorch has asked for them before anybody could register some: these take their place in
  // memory.
  new (const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks())) Hooks;
  c10::SetAllocator(at::kCUDA, &gpu_memory, /*priority=*/1);
  c10::SetAllocator(at::kCPU, &cpu_memory, /*priority=*/1);
  return true;
}();

}  // namespace

C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::FakeGuardImpl<at::kCUDA>)

TORCH_LIBRARY_IMPL(_, CUDA, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
}
TORCH_LIBRARY_IMPL(aten, CUDA, m) { m.impl("set_.source_Storage", set_storage); }
// PyTorch has a kernel of these for all devices, which asks for what only a CUDA build has.
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  for (const char* op :
       {"copy_", "convolution", "convolution_overrideable", "convolution_backward"}) {
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
  }
}

// A layer's tensors as its kernels get them.
#pragma once

#include <c10/util/SmallVector.h>

#include "rnn/rnn.h"
#include "rnn/rnn_layer_signature.h"

namespace pyops {

// Where each step's rows begin, checked: kernels trust it.
using RnnOffsets = c10::SmallVector<int64_t, 2>;
RnnOffsets offsets_of(const RnnLayer& layer);

RnnShape shape_of(const RnnLayer& layer, const RnnOffsets& offsets);

// Keeps contiguous copies alive as long as their addresses are used.
class Contiguous {
 public:
  const void* operator()(const Tensor& t) {
    return copies_.emplace_back(t.contiguous()).const_data_ptr();
  }
  const void* operator()(const OptionalTensor& t) { return t ? (*this)(*t) : nullptr; }

 private:
  c10::SmallVector<Tensor, 12> copies_;
};

// Memory that a GPU's kernels want beside their results; null on the CPU, whose have their own.
class Workspaces {
 public:
  explicit Workspaces(const Tensor& like) : like_(like) {}
  void* operator()(at::IntArrayRef sizes, const at::TensorOptions& options) {
    if (!like_.is_cuda()) return nullptr;
    return all_.emplace_back(at::empty(sizes, options)).mutable_data_ptr();
  }
  void* arrivals(int64_t layers = 1) {
    return (*this)({layers, kRnnArrivals}, like_.options().dtype(at::kInt));
  }

 private:
  const Tensor& like_;
  c10::SmallVector<Tensor, 7> all_;
};

// A call of a layer that lives as long as what its parameters point to.
template <class Params>
class RnnCall {
 public:
  RnnCall(const RnnCall&) = delete;

  Params params{};

 protected:
  // With what both directions read.
  explicit RnnCall(const RnnLayer& layer);

  Contiguous data_;
  Workspaces work_;

 private:
  RnnOffsets offsets_;
};

// Its results are still to be written.
struct RnnForwardCall : RnnCall<RnnParams> {
  explicit RnnForwardCall(const RnnLayer& layer);

  RnnOutputs outputs() const;

  Tensor y, hn, cn, reserve;
};

// Gradients that are not wanted stay undefined.
struct RnnBackwardCall : RnnCall<RnnBackwardParams> {
  explicit RnnBackwardCall(const RnnLayerBackward& layer);

  std::array<Tensor, kInputs> grads;
};

}  // namespace pyops

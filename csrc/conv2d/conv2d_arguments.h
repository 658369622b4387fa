// The arguments of the convolution operators: parsed, checked and put into a Conv2dShape.
#pragma once

#include <array>
#include <string_view>
#include <utility>

#include "conv2d/conv2d.h"
#include "core/pair.h"
#include "core/torch.h"

namespace pyops {

// A tracer may pass a schema's integers as symbols; asking for the number guards on it.
inline c10::DimVector guard(c10::SymIntArrayRef values) {
  return C10_AS_INTARRAYREF_SLOW_ALLOC(values);
}
inline int64_t guard(const c10::SymInt& value) { return value.guard_int(__FILE__, __LINE__); }

struct Conv2dArguments {
  Pair stride, padding, dilation;
  int64_t groups;
};

Conv2dArguments conv2d_arguments(const char* op, at::IntArrayRef stride, at::IntArrayRef padding,
                                 at::IntArrayRef dilation, int64_t groups);

// Refuses what no convolution takes; x is (N, C, H, W), bias may be undefined. Sizes are symbolic
// for tracers, which call no kernel that would ask.
void check_conv2d(const char* op, const Tensor& x, const Tensor& w, const Tensor& bias,
                  const Conv2dArguments& arguments);

// Checks the call and describes it. On a GPU channels come last wherever its tensor cores then take
// the call: copies cost less than doing without.
Conv2dShape conv2d_shape(const char* op, const Tensor& x, const Tensor& w, const Tensor& bias,
                         const Conv2dArguments& arguments);

// Of the result and of both gradients, as native has it.
at::MemoryFormat conv2d_memory_format(const Tensor& x, const Tensor& w);
// As kernels read and write it.
inline at::MemoryFormat kernel_format(const Conv2dShape& shape) {
  return shape.channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}
// What kernels wrote, as native has it.
inline Tensor from_kernel(const Tensor& t, const Conv2dShape& shape, at::MemoryFormat format) {
  return t.defined() && format != kernel_format(shape) ? t.clone(format) : t;
}

// Whether the call belongs to PyTorch because there is nothing to compute; noted for explain().
bool is_empty(const char* op, const Tensor& x, const Tensor& w);

// Gradients of the input, the weight and the bias, through the dispatcher: differentiable when grad
// or a tensor needs it.
std::tuple<Tensor, Tensor, Tensor> conv2d_backward(const Tensor& grad, const Tensor& x,
                                                   const Tensor& w,
                                                   const OptionalTensor& relu_output,
                                                   at::IntArrayRef stride, at::IntArrayRef padding,
                                                   at::IntArrayRef dilation, int64_t groups,
                                                   std::array<bool, 3> wanted);

// The integers that padding="same" or "valid" stands for; the input comes back padded when the two
// ends of an axis differ.
std::pair<Tensor, std::array<int64_t, 2>> resolve_padding(const char* op, const Tensor& x,
                                                          const Tensor& w, at::IntArrayRef stride,
                                                          std::string_view padding,
                                                          at::IntArrayRef dilation);

}  // namespace pyops

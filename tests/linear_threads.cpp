// What the threads of the general CUDA kernels of linear layers compute, phase by phase on the CPU.
#include "linear_relu/linear_relu_product.h"
#include "threads.h"

using namespace pyops;

extern "C" {

void forward(int dtype, const int64_t* mnk, int relu, const void* x, const void* w,
             const void* bias, void* y) {
  const LinearParams p{static_cast<Dtype>(dtype),
                       Precision::kHighest,
                       mnk[0],
                       mnk[1],
                       mnk[2],
                       relu != 0,
                       x,
                       w,
                       bias,
                       y};
  dispatch_dtype(p.dtype, [&]<class T>(T) { multiply(LinearForward<T>{p}); });
}

void backward(int dtype, const int64_t* mnk, const void* grad_y, const void* y, const void* x,
              const void* w, void* grad_x, void* grad_w, void* grad_bias) {
  const LinearBackwardParams p{static_cast<Dtype>(dtype),
                               Precision::kHighest,
                               mnk[0],
                               mnk[1],
                               mnk[2],
                               grad_y,
                               y,
                               x,
                               w,
                               grad_x,
                               grad_w,
                               grad_bias,
                               nullptr};
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    if (grad_x != nullptr) multiply(LinearBackwardX<T>{p});
    multiply(LinearBackwardW<T>{p});
  });
}
}

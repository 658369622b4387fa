// What the threads of the general CUDA kernels of linear layers compute, phase by phase on the CPU.
#include "gemm/gradient_matrix.h"
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
                               grad_bias};
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    if (grad_x != nullptr) multiply(LinearBackwardX<T>{p});
    multiply(LinearBackwardW<T>{p});
  });
}

void mask(int dtype, int64_t rows, int64_t columns, const void* grad, const void* y, void* to) {
  const GradientMatrix matrix{static_cast<Dtype>(dtype), rows, columns};
  dispatch_dtype<kTileTypes>(matrix.dtype, [&]<class T>(T) {
    for (int64_t i = 0; i < matrix.packs(); ++i) {
      mask_pack(static_cast<const T*>(grad), static_cast<const T*>(y), static_cast<T*>(to), i);
    }
  });
}

// The gradient of a bias, and in how many parts it was summed.
int64_t sum_columns(int dtype, int64_t rows, int64_t columns, const void* grad, void* to) {
  const GradientMatrix matrix{static_cast<Dtype>(dtype), rows, columns};
  const int64_t parts = matrix.parts();
  std::vector<float> sums(parts * columns, __builtin_nanf(""));
  dispatch_dtype<kTileTypes>(matrix.dtype, [&]<class T>(T) {
    using Sums = ColumnSums<T, float>;
    const Sums whole{static_cast<const T*>(grad), sums.data(), rows, columns};
    typename Sums::Shared shared;
    for (int64_t i = 0; i < parts * whole.blocks(); ++i) {
      const Sums part = whole.part(i / whole.blocks(), parts);
      for (int t = 0; t < Sums::kThreads; ++t) part.accumulate(i % whole.blocks(), t, shared);
      for (int t = 0; t < Sums::kThreads; ++t) part.finish(i % whole.blocks(), t, shared);
    }
    for (int64_t e = 0; e < columns; ++e) {
      static_cast<T*>(to)[e] = static_cast<T>(sum_of_parts<float>(sums.data(), parts, columns, e));
    }
  });
  return parts;
}
}

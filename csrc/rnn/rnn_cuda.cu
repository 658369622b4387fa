// LSTM and GRU layers on any GPU from sm_80 on, for any dtype, shape and alignment: one launch for
// the inputs of all steps, then one for each step. Sums run in the order of the depth, so that
// every run gives the same. The products over all rows, that of the inputs and the gradients of
// inputs and weights, have tensor cores where that pays; those of the steps do without.
#include "gemm/block_product.cuh"
#include "gemm/gemm_tf32.h"
#include "gemm/tensorop.cuh"
#include "rnn/rnn_backward_product.h"
#include "rnn/rnn_forward_product.h"
#include "rnn/rnn_tensorop.h"
#include "rnn/rnn_wavefront.h"

namespace pyops {
namespace {

using cutlass::layout::ColumnMajor;
using cutlass::layout::RowMajor;

template <class Product>
__global__ void __launch_bounds__(kBlock, kBlocksOfProducts) rnn_forward_kernel(Product p) {
  multiply_blocks(p);
}
template <class Product>
__global__ void __launch_bounds__(kBlock, kBlocksOfProducts) rnn_backward_kernel(Product p) {
  multiply_blocks(p);
}
template <class Product>
__global__ void __launch_bounds__(kBlock, kBlocksOfProducts)
    rnn_forward_inputs_kernel(const __grid_constant__ RnnForwardFront front) {
  multiply_blocks(Product::of(front.layer[blockIdx.y]));
}
template <class Product>
__global__ void __launch_bounds__(kBlock, kBlocksOfProducts)
    rnn_backward_inputs_kernel(const __grid_constant__ RnnBackwardFront front) {
  multiply_blocks(Product::of(front.layer[blockIdx.y]));
}
template <class Gemm>
__global__ void __launch_bounds__(Gemm::GemmKernel::kThreadCount, 2)
    rnn_forward_tensorop_kernel(const __grid_constant__ typename Gemm::GemmKernel::Params p) {
  multiply_tensorop<Gemm>(p);
}
template <class Gemm>
__global__ void __launch_bounds__(Gemm::GemmKernel::kThreadCount, 2)
    rnn_backward_tensorop_kernel(const __grid_constant__ typename Gemm::GemmKernel::Params p) {
  multiply_tensorop<Gemm>(p);
}

template <class T>
inline constexpr bool kHasTensorop = sizeof(T) <= 4;

// Runs each product where it belongs; after an error nothing more.
template <bool kTensorop>
struct Forward {
  const RnnParams& p;
  cudaStream_t stream;
  cudaError_t status = cudaSuccess;

  template <class Product>
  void operator()(const Product& product) {
    if (status == cudaSuccess) {
      status = launch_product(rnn_forward_kernel<Product>, product, stream);
    }
  }
  template <class Cell, class T>
    requires(kTensorop && kHasTensorop<T>)
  void operator()(const RnnInputProduct<Cell, T>& product) {
    if (status != cudaSuccess || product.rows == 0) return;
    const T* x = static_cast<const T*>(p.x) + product.first * p.input;
    float* sums = static_cast<float*>(p.reserve) + product.first * product.line;
    const TensoropOperands o{product.rows, product.columns, p.input, x,           p.w_ih, nullptr,
                             sums,         p.input,         p.input, product.line};
    if constexpr (std::is_same_v<T, float>) {
      status = gemm_nt_tf32(p.precision, o, stream);
    } else {
      using Gemm = TensoropGemm<cutlass_t<T>, RowMajor, ColumnMajor, StoreSums<float>>;
      status = launch_tensorop<Gemm>(rnn_forward_tensorop_kernel<Gemm>, o, stream);
    }
  }
};

template <bool kTensorop>
struct Backward {
  const RnnBackwardParams& p;
  cudaStream_t stream;
  cudaError_t status = cudaSuccess;

  template <class Product>
  void operator()(const Product& product) {
    if (status == cudaSuccess) {
      status = launch_product(rnn_backward_kernel<Product>, product, stream);
    }
  }
  template <class Cell, class T>
    requires(kTensorop && kHasTensorop<T>)
  void operator()(const RnnInputGradient<Cell, T>& product) {
    if (product.rows == 0) return;
    const T* from_x = static_cast<const T*>(p.from_x) + product.first * product.depth;
    T* grad_x = static_cast<T*>(p.grad_x) + product.first * p.input;
    run<T, RowMajor>(gemm_nn_tf32, {product.rows, p.input, product.depth, from_x, p.w_ih, nullptr,
                                    grad_x, product.depth, p.input, p.input});
  }
  template <class T>
    requires(kTensorop && kHasTensorop<T>)
  void operator()(const RnnWeightGradient<T>& product) {
    const auto& [grad, by, weight, bias, rows, width, depth, begin, columns] = product;
    if (weight != nullptr) {
      run<T, ColumnMajor>(gemm_tn_tf32,
                          {rows, width, depth, grad, by, nullptr, weight, rows, width, width});
    }
    if (bias == nullptr || status != cudaSuccess) return;
    status = sum_columns_cuda(gradient_of(p), grad, bias, p.workspace, stream);
  }

 private:
  template <class T, class LayoutA>
  void run(decltype(&gemm_nn_tf32) of_float32, const TensoropOperands& operands) {
    if (status != cudaSuccess) return;
    if constexpr (std::is_same_v<T, float>) {
      status = of_float32(p.precision, operands, stream);
    } else {
      using Gemm = TensoropGemm<cutlass_t<T>, LayoutA, RowMajor>;
      status = launch_tensorop<Gemm>(rnn_backward_tensorop_kernel<Gemm>, operands, stream);
    }
  }
};

// Of all layers of a front in one launch, a line of the grid for each.
template <class Product, class Params>
cudaError_t launch_inputs(void (*kernel)(RnnFront<Params>), const RnnFront<Params>& front,
                          cudaStream_t stream) {
  int64_t tiles = 0;
  for (int64_t l = 0; l < front.layers; ++l) {
    tiles = std::max(tiles, BlockProduct<Product>::tiles(Product::of(front.layer[l])));
  }
  if (tiles == 0) return cudaSuccess;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(std::min<int64_t>(tiles, INT32_MAX)),
                        static_cast<unsigned>(front.layers));
  config.blockDim = dim3(kBlock);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, front);
}

// One after the other, on tensor cores where they take the layer.
template <template <bool> class Run, class Product, class Params>
cudaError_t run_inputs(const RnnFront<Params>& front, cudaStream_t stream) {
  cudaError_t status = cudaSuccess;
  for (int64_t l = 0; l < front.layers && status == cudaSuccess; ++l) {
    const RnnPiece<Params>& piece = front.layer[l];
    const auto multiply = [&](auto run) {
      run(Product::of(piece));
      status = run.status;
    };
    suits_tensorop(piece.p) ? multiply(Run<true>{piece.p, stream})
                            : multiply(Run<false>{piece.p, stream});
  }
  return status;
}

// Whether each piece of a front is enough for tensor cores, rather than all of them for one launch.
template <class Product, class Params>
bool pays_in_turn(const RnnFront<Params>& front) {
  return std::all_of(front.layer, front.layer + front.layers, [](const RnnPiece<Params>& piece) {
    const Product product = Product::of(piece);
    return suits_tensorop(piece.p) && pays_tensorop(piece.p.dtype, product.rows, product.columns);
  });
}

}  // namespace

cudaError_t rnn_forward_cuda(const RnnParams& p, cudaStream_t stream) {
  Forward<false> run{p, stream};
  dispatch_cell(p, [&]<class Cell, class T>(Cell, T) { rnn_forward_products<Cell, T>(p, run); });
  return run.status;
}

cudaError_t rnn_forward_tensorop_cuda(const RnnParams& p, cudaStream_t stream) {
  Forward<true> run{p, stream};
  dispatch_cell<kTileTypes>(
      p, [&]<class Cell, class T>(Cell, T) { rnn_forward_products<Cell, T>(p, run); });
  return run.status;
}

cudaError_t rnn_forward_inputs_cuda(const RnnForwardFront& front, cudaStream_t stream) {
  cudaError_t status = cudaSuccess;
  dispatch_cell(front.layer[0].p, [&]<class Cell, class T>(Cell, T) {
    using Product = RnnInputProduct<Cell, T>;
    if constexpr (sizeof(T) == 2) {
      status = run_inputs<Forward, Product>(front, stream);
    } else {
      status = pays_in_turn<Product>(front)
                   ? run_inputs<Forward, Product>(front, stream)
                   : launch_inputs<Product>(rnn_forward_inputs_kernel<Product>, front, stream);
    }
  });
  return status;
}

cudaError_t rnn_backward_cuda(const RnnBackwardParams& p, cudaStream_t stream) {
  Backward<false> run{p, stream};
  dispatch_cell(p, [&]<class Cell, class T>(Cell, T) { rnn_backward_products<Cell, T>(p, run); });
  return run.status;
}

cudaError_t rnn_backward_inputs_cuda(const RnnBackwardFront& front, cudaStream_t stream) {
  cudaError_t status = cudaSuccess;
  dispatch_cell(front.layer[0].p, [&]<class Cell, class T>(Cell, T) {
    using Product = RnnInputGradient<Cell, T>;
    if constexpr (sizeof(T) == 2) {
      status = run_inputs<Backward, Product>(front, stream);
    } else {
      status = pays_in_turn<Product>(front)
                   ? run_inputs<Backward, Product>(front, stream)
                   : launch_inputs<Product>(rnn_backward_inputs_kernel<Product>, front, stream);
    }
  });
  return status;
}

cudaError_t rnn_backward_weights_cuda(const RnnBackwardParams& p, cudaStream_t stream) {
  cudaError_t status = cudaSuccess;
  dispatch_cell(p, [&]<class Cell, class T>(Cell, T) {
    const auto sum_by = [&](auto run) {
      rnn_backward_weights<Cell, T>(p, run);
      status = run.status;
    };
    suits_tensorop(p) ? sum_by(Backward<true>{p, stream}) : sum_by(Backward<false>{p, stream});
  });
  return status;
}

cudaError_t rnn_backward_tensorop_cuda(const RnnBackwardParams& p, cudaStream_t stream) {
  Backward<true> run{p, stream};
  dispatch_cell<kTileTypes>(
      p, [&]<class Cell, class T>(Cell, T) { rnn_backward_products<Cell, T>(p, run); });
  return run.status;
}

}  // namespace pyops

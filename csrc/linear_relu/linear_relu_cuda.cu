// Linear layers on any GPU from sm_80 on, for any dtype, shape and alignment, without tensor cores:
// float32 is float32 here. Sums run in the order of the depth, so that every run gives the same.
#include "core/cuda.cuh"
#include "gemm/block_product.h"
#include "linear_relu/linear_relu_product.h"

namespace pyops {
namespace {

// Of blocks on an SM at once: with more, the addresses of both operands do not fit the registers.
constexpr int kBlocksOfProducts = 2;

template <class Product>
__device__ void multiply(const Product& product) {
  using Block = BlockProduct<Product>;
  static_assert(Block::kThreads == kBlock);
  __shared__ typename Block::Panels panels;
  const auto thread = static_cast<int>(threadIdx.x);
  for (int64_t tile = blockIdx.x; tile < Block::tiles(product); tile += gridDim.x) {
    typename Block::Piece sums{};
    for (int64_t q = 0; q < product.depth; q += Block::kDepth) {
      Block::load(product, tile, q, thread, panels);
      __syncthreads();
      Block::accumulate(panels, thread, sums);
      __syncthreads();
    }
    Block::store(product, tile, thread, sums);
  }
}

template <class Product>
__global__ void __launch_bounds__(kBlock, kBlocksOfProducts) linear_forward_kernel(Product p) {
  multiply(p);
}
template <class Product>
__global__ void __launch_bounds__(kBlock, kBlocksOfProducts) linear_backward_kernel(Product p) {
  multiply(p);
}

template <class Product>
cudaError_t launch_product(void (*kernel)(Product), const Product& product, cudaStream_t stream) {
  return launch(kernel, BlockProduct<Product>::tiles(product) * kBlock, stream, product);
}

}  // namespace

cudaError_t linear_forward_cuda(const LinearParams& p, cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    status = launch_product(linear_forward_kernel<LinearForward<T>>, LinearForward<T>{p}, stream);
  });
  return status;
}

cudaError_t linear_backward_cuda(const LinearBackwardParams& p, cudaStream_t stream) {
  cudaError_t status = cudaSuccess;
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    const LinearBackwardX<T> x{p};
    const LinearBackwardW<T> w{p};
    if (p.grad_x != nullptr && x.rows * x.columns != 0) {
      status = launch_product(linear_backward_kernel<LinearBackwardX<T>>, x, stream);
    }
    if (status == cudaSuccess && w.rows * w.columns != 0) {
      status = launch_product(linear_backward_kernel<LinearBackwardW<T>>, w, stream);
    }
  });
  return status;
}

}  // namespace pyops

// Linear layers of half precision on Hopper: three products of matrices, bias and ReLU in the
// epilogue of the first.
#include "gemm/backward_by_products.cuh"
#include "gemm/gemm_sm90.h"
#include "linear_relu/linear_relu_tensorop.h"

namespace pyops {
namespace {

GemmSm90Params weight_product(const LinearBackwardParams& p) {
  return {p.dtype, p.n, p.k, p.m, p.grad_y, p.x, p.grad_w};
}

}  // namespace

cudaError_t linear_forward_sm90(const LinearParams& p, cudaStream_t stream) {
  return gemm_nt_sm90({p.dtype, p.m, p.n, p.k, p.x, p.w, p.y, p.bias, p.relu}, stream);
}

cudaError_t linear_backward_sm90(const LinearBackwardParams& given, cudaStream_t stream) {
  return backward_by_products(given, stream, [&](const LinearBackwardParams& p) {
    cudaError_t status = cudaSuccess;
    if (p.grad_x != nullptr) {
      status = gemm_nn_sm90({p.dtype, p.m, p.k, p.n, p.grad_y, p.w, p.grad_x}, stream);
    }
    if (status != cudaSuccess || p.grad_w == nullptr) return status;
    return gemm_tn_sm90(weight_product(p), p.workspace, stream);
  });
}

int64_t linear_backward_workspace_sm90(const LinearBackwardParams& p) {
  return backward_workspace(p, p.grad_w == nullptr ? 0 : gemm_tn_workspace_sm90(weight_product(p)));
}

}  // namespace pyops

// The gradient of a layer's result as a matrix, where a GPU's kernels read it as it lies: a row for
// every position, a column for every output, which are a multiple of 16 bytes and aligned to them.
#pragma once

#include <algorithm>

#include "gemm/column_sums.h"
#include "gemm/parts.h"

namespace pyops {

struct GradientMatrix {
  Dtype dtype;
  int64_t rows, columns;

  int64_t packs() const { return rows * columns / pack_width(dtype); }

  // Of its copy without what the ReLU held back; what follows is aligned too.
  int64_t masked_bytes() const {
    constexpr int64_t kLine = 256;
    return (packs() * kPackBytes + kLine - 1) / kLine * kLine;
  }

  // Stretches of rows that are summed apart, as a few columns would not occupy a GPU. They depend
  // on the shape alone: so does the order of the sums.
  int64_t parts() const {
    constexpr int64_t kBlocks = 264, kLeastRows = 512;
    const int64_t blocks = column_blocks(dtype, columns);
    return std::max<int64_t>(1, std::min(kBlocks / blocks, rows / kLeastRows));
  }
  int64_t parts_bytes() const { return parts() == 1 ? 0 : 4 * parts() * columns; }
};

// Of `masked`, which is `grad` where `y` lets it pass, a pack: a NaN does.
template <class T>
PYOPS_HOST_DEVICE inline void mask_pack(const T* grad, const T* y, T* masked, int64_t pack) {
  const int64_t at = pack * Pack<T>::kWidth;
  Pack<T> passed = load_pack(grad + at);
  const Pack<T> outputs = load_pack(y + at);
  PYOPS_UNROLL for (int v = 0; v < Pack<T>::kWidth; ++v) {
    if (static_cast<float>(outputs.at[v]) <= 0) passed.at[v] = static_cast<T>(0.0f);
  }
  store_pack(masked + at, passed);
}
cudaError_t mask_gradient_cuda(const GradientMatrix& matrix, const void* grad, const void* y,
                               void* masked, cudaStream_t stream);
// The gradient of the bias; the workspace has parts_bytes().
cudaError_t sum_columns_cuda(const GradientMatrix& matrix, const void* grad, void* sums,
                             void* workspace, cudaStream_t stream);

// Bytes that backward_by_products() keeps for p, whose products keep `products`.
template <class Params>
int64_t backward_workspace(const Params& p, int64_t products) {
  const GradientMatrix gradient = gradient_of(p);
  const int64_t parts = p.grad_bias != nullptr ? gradient.parts_bytes() : 0;
  return (p.y != nullptr ? gradient.masked_bytes() : 0) + std::max(products, parts);
}

}  // namespace pyops

// What the threads of the general CUDA kernels of recurrent layers compute, on the CPU.
#include "rnn/rnn_backward_product.h"
#include "threads.h"

using namespace pyops;

namespace {

// shape: dtype, cell, reverse, T, B, I, H, R
RnnShape shape_of(const int64_t* shape, const int64_t* offsets) {
  return {static_cast<Dtype>(shape[0]),
          Precision::kHighest,
          static_cast<RnnCell>(shape[1]),
          shape[2] != 0,
          shape[3],
          shape[4],
          shape[5],
          shape[6],
          shape[7],
          offsets};
}

}  // namespace

extern "C" {

// Tensors come in the order of the members that point to them.
void forward(const int64_t* shape, const int64_t* offsets, int save, void** tensors) {
  auto** t = tensors;
  const RnnParams p{shape_of(shape, offsets),
                    save != 0,
                    t[0],
                    t[1],
                    t[2],
                    t[3],
                    t[4],
                    t[5],
                    t[6],
                    t[7],
                    t[8],
                    t[9],
                    t[10],
                    t[11],
                    t[12],
                    t[13]};
  dispatch_cell(p, [&]<class Cell, class T>(Cell, T) {
    rnn_forward_products<Cell, T>(p, [](const auto& product) { multiply(product); });
  });
}

void backward(const int64_t* shape, const int64_t* offsets, void** tensors) {
  auto** t = tensors;
  const RnnBackwardParams p{shape_of(shape, offsets),
                            t[0],
                            t[1],
                            t[2],
                            t[3],
                            t[4],
                            t[5],
                            t[6],
                            t[7],
                            t[8],
                            t[9],
                            t[10],
                            t[11],
                            t[12],
                            t[13],
                            t[14],
                            t[15],
                            t[16],
                            t[17],
                            t[18],
                            t[19],
                            t[20],
                            t[21],
                            t[22],
                            t[23]};
  dispatch_cell(p, [&]<class Cell, class T>(Cell, T) {
    rnn_backward_products<Cell, T>(p, [](const auto& product) { multiply(product); });
  });
}
}

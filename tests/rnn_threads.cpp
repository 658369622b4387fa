// What the threads of the general CUDA kernels of recurrent layers compute, on the CPU.
#include "rnn/rnn_backward_product.h"
#include "rnn/rnn_resident.h"
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

// The steps of a launch of `blocks` blocks, a warp at a time.
template <class Cell, class T>
void run_resident(const RnnParams& p, int64_t blocks) {
  using Resident = RnnResident<Cell, T>;
  for (int64_t s = 0; s < p.steps; ++s) {
    const RnnStep step = Resident::step_at(p, s);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t last = Resident::first_unit(p, block + 1, blocks);
      for (int64_t u = Resident::first_unit(p, block, blocks); u < last; ++u) {
        for (int64_t row = 0; row < p.batch; row += Resident::kRows) {
          typename Resident::Sums all{};
          for (int lane = 0; lane < Resident::kLanes; ++lane) {
            const auto sums = Resident::accumulate(p, step, Resident::row_of(p, u, 0),
                                                   p.hidden * p.output, row, lane);
            for (int r = 0; r < Resident::kRows; ++r) {
              for (int g = 0; g < 4; ++g) all.at[r][g] += sums.at[r][g];
            }
          }
          for (int lane = 0; lane < Resident::kLanes; ++lane) {
            Resident::finish(p, step, u, row, lane, all);
          }
        }
      }
    }
  }
}

RnnParams params_of(const int64_t* shape, const int64_t* offsets, int save, void** t) {
  return {shape_of(shape, offsets),
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
}

}  // namespace

extern "C" {

// Tensors come in the order of the members that point to them.
void forward(const int64_t* shape, const int64_t* offsets, int save, void** tensors) {
  const RnnParams p = params_of(shape, offsets, save, tensors);
  dispatch_cell(p, [&]<class Cell, class T>(Cell, T) {
    rnn_forward_products<Cell, T>(p, [](const auto& product) { multiply(product); });
  });
}

void resident(const int64_t* shape, const int64_t* offsets, int save, int blocks, void** tensors) {
  const RnnParams p = params_of(shape, offsets, save, tensors);
  if (!suits_resident(p)) return;  // leaves what the test finds unwritten
  dispatch_cell(p, [&]<class Cell, class T>(Cell, T) {
    multiply(RnnInputProduct<Cell, T>{p, p.rows()});
    run_resident<Cell, T>(p, blocks);
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

// Matrices as the tensor cores of sm_80 take them.
#pragma once

#include <cstdint>

namespace pyops {

// Where they begin, and how far their lines are apart. C is the bias, the same for every row, or
// with a line of its own a matrix; without one C is not read.
struct TensoropOperands {
  int64_t rows, columns, depth;
  const void *a, *b, *bias;
  void* d;
  int64_t a_line, b_line, d_line;
  bool relu = false;  // of products that StoreRelu ends
  int64_t bias_line = 0;
};

}  // namespace pyops

// How faithfully float32 matrices are multiplied: torch.set_float32_matmul_precision's levels.
#pragma once

namespace pyops {

enum class Precision {
  kHighest,  // float32 accuracy
  kHigh,     // about 2^-16 (bf16x3); on a GPU 2^-11 (TF32)
  kMedium,   // bfloat16 products, summed in float32; a GPU's switches know TF32 instead
};

}  // namespace pyops

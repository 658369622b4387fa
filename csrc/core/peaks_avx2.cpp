#include "core/multiply_add.h"
#include "core/peaks_simd.h"

namespace pyops {

double multiply_add_float32_avx2(int64_t iterations) {
  return avx2::multiply_add_float32(iterations);
}

}  // namespace pyops

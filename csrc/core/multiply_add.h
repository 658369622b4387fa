// The loops behind peaks.h: each runs `iterations` of nothing but independent multiply-adds and
// returns the operations done.
#pragma once

#include <cstdint>

namespace pyops {

double multiply_add_float32_avx2(int64_t iterations);
double multiply_add_float32_avx512(int64_t iterations);
double multiply_add_bfloat16_avx512_bf16(int64_t iterations);
double multiply_add_bfloat16_amx(int64_t iterations);

}  // namespace pyops

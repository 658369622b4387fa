// What this machine's arithmetic units can do: the limits that benchmarks are measured against.
#pragma once

#include <string>
#include <vector>

namespace pyops {

struct Peak {
  std::string unit;  // "avx2_float32", "avx512_float32", "avx512_bf16_bfloat16", "amx_bfloat16"
  int threads;
  double gflops;
};

// Every unit up to the current isa(), on one thread and on all; takes about 0.1 s.
std::vector<Peak> measure_peaks();

}  // namespace pyops

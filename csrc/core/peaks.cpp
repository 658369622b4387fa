#include "core/peaks.h"

#include <algorithm>
#include <chrono>

#include "core/isa.h"
#include "core/multiply_add.h"
#include "core/parallel.h"

namespace pyops {
namespace {

using MultiplyAdd = double (*)(int64_t);

// Best of several short runs: whatever disturbs one only makes it slower.
double gflops(MultiplyAdd multiply_add, int threads) {
  constexpr int kRuns = 8;
  constexpr int64_t kIterations = 100'000;
  double best = 0;
  for (int run = 0; run < kRuns; ++run) {
    std::vector<double> operations(static_cast<size_t>(threads));
    const auto start = std::chrono::steady_clock::now();
    parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        operations[static_cast<size_t>(t)] = multiply_add(kIterations);
      }
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    double total = 0;
    for (const double n : operations) total += n;
    best = std::max(best, total / seconds.count() * 1e-9);
  }
  return best;
}

}  // namespace

std::vector<Peak> measure_peaks() {
  const struct {
    const char* unit;
    Isa isa;
    MultiplyAdd multiply_add;
  } units[] = {{"avx2_float32", Isa::kAvx2, multiply_add_float32_avx2},
               {"avx512_float32", Isa::kAvx512, multiply_add_float32_avx512},
               {"avx512_bf16_bfloat16", Isa::kAvx512Bf16, multiply_add_bfloat16_avx512_bf16},
               {"amx_bfloat16", Isa::kAmx, multiply_add_bfloat16_amx}};
  std::vector<Peak> peaks;
  for (const auto& unit : units) {
    if (unit.isa > isa()) continue;
    peaks.push_back({unit.unit, 1, gflops(unit.multiply_add, 1)});
    if (num_threads() > 1) {
      peaks.push_back({unit.unit, num_threads(), gflops(unit.multiply_add, num_threads())});
    }
  }
  return peaks;
}

}  // namespace pyops

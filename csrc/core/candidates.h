// The ordered table of kernels an operator chooses from: best first, the reference last.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "core/cuda_types.h"
#include "core/dtype.h"
#include "core/place.h"

namespace pyops {

// What a row runs: a function on the CPU, or one that launches it on a GPU, which may fail.
template <class Params>
struct Kernel {
  using Run = void (*)(const Params&);
  using Launch = cudaError_t (*)(const Params&, cudaStream_t);

  Run run = nullptr;
  Launch launch = nullptr;

  constexpr Kernel(Run function) : run(function) {}
  constexpr Kernel(Launch function) : launch(function) {}
  void operator()(const Params& params) const { run(params); }
};

// One row: the kernel, what it needs from the machine, and what it takes. `Params` has a `dtype`.
template <class Params>
struct Candidate {
  const char* kernel;  // the function's name
  Place place;
  DtypeSet dtypes;
  Kernel<Params> run;
  bool (*takes)(const Params&) = nullptr;  // null: every shape
  const char* condition = "";              // what `takes` asks for, in words
  // Of a GPU's kernel that keeps more than its results: bytes of params.workspace.
  int64_t (*workspace)(const Params&) = nullptr;
};

using Rejection = std::pair<std::string, std::string>;  // kernel, why it did not run

// Why a row cannot serve the call; null when it can.
template <class Params>
const char* rejection(const Candidate<Params>& row, const Params& params, Target target) {
  if (const char* reason = row.place.rejection(target)) return reason;
  if (!(row.dtypes & dtype_bit(params.dtype))) return "dtype";
  if (row.takes != nullptr && !row.takes(params)) return row.condition;
  return nullptr;
}

// First row for the target's kind of device that fits, or the last of them; the rows passed over go
// to `rejected` when it is given.
template <class Params, size_t kRows>
const Candidate<Params>& pick(const Candidate<Params> (&table)[kRows], const Params& params,
                              Target target, std::vector<Rejection>* rejected = nullptr) {
  const Candidate<Params>* last = nullptr;
  for (const auto& row : table) {
    if (row.place.is_gpu() != target.is_gpu()) continue;
    const char* reason = rejection(row, params, target);
    if (reason == nullptr) return row;
    if (rejected != nullptr) rejected->emplace_back(row.kernel, reason);
    last = &row;
  }
  return *last;
}

}  // namespace pyops

// The ordered table of kernels an operator chooses from: best first, the reference last.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "core/dtype.h"
#include "core/isa.h"

namespace pyops {

// One row: the kernel, what it needs from the machine, and what it takes. `Params` has a `dtype`.
template <class Params>
struct Candidate {
  const char* kernel;  // the function's name, or "native" for PyTorch's own operator
  Isa isa;
  DtypeSet dtypes;
  void (*run)(const Params&);              // null in the native row
  bool (*takes)(const Params&) = nullptr;  // null: every shape
  const char* condition = "";              // what `takes` asks for, in words
};

using Rejection = std::pair<std::string, std::string>;  // kernel, why it did not run

// Why a row cannot serve the call; null when it can.
template <class Params>
const char* rejection(const Candidate<Params>& row, const Params& params) {
  if (row.isa > isa()) return row.isa > isa_detected() ? "not on this CPU" : "above the ISA cap";
  if (!(row.dtypes & dtype_bit(params.dtype))) return "dtype";
  if (row.takes != nullptr && !row.takes(params)) return row.condition;
  return nullptr;
}

// First row that fits; the rows passed over go to `rejected` when it is given.
template <class Params, size_t kRows>
const Candidate<Params>& pick(const Candidate<Params> (&table)[kRows], const Params& params,
                              std::vector<Rejection>* rejected = nullptr) {
  for (const auto& row : table) {
    const char* reason = rejection(row, params);
    if (reason == nullptr) return row;
    if (rejected != nullptr) rejected->emplace_back(row.kernel, reason);
  }
  return table[kRows - 1];
}

}  // namespace pyops

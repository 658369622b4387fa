// What ran, and why nothing better did: the log behind pyops.explain() and the tables behind
// `pyops info`.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/candidates.h"

namespace pyops {

struct CallRecord {
  std::string op, dtype, kernel;
  std::vector<std::vector<int64_t>> shapes;
  std::vector<Rejection> rejected;
};

extern std::atomic<int> explain_depth;  // > 0 while somebody listens
inline bool explaining() { return explain_depth.load(std::memory_order_relaxed) > 0; }
void explain_record(CallRecord record);
size_t explain_begin();                             // position in the log
std::vector<CallRecord> explain_end(size_t begin);  // what came since `begin`

struct TableRow {
  std::string op, kernel, device, needs, condition;  // device: "cpu" or "cuda"; needs: of it
  std::vector<std::string> dtypes;
};

std::vector<TableRow>& listed_tables();

// Makes a table visible to `pyops info`; the value only exists to be a static initialiser.
template <class Params, size_t kRows>
bool list_table(const char* op, const Candidate<Params> (&table)[kRows]) {
  for (const auto& row : table) {
    const char* device = row.place.is_gpu() ? "cuda" : "cpu";
    TableRow listed{op, row.kernel, device, row.place.name(), row.condition, {}};
    for (unsigned t = 0; t < 4; ++t) {
      if (row.dtypes >> t & 1u) listed.dtypes.emplace_back(kDtypeNames[t]);
    }
    listed_tables().push_back(std::move(listed));
  }
  return true;
}

}  // namespace pyops

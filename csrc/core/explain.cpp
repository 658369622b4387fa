#include "core/explain.h"

#include <mutex>

namespace pyops {
namespace {

std::mutex mutex;
std::vector<CallRecord> records;

}  // namespace

std::atomic<int> explain_depth{0};

void explain_record(CallRecord record) {
  const std::lock_guard lock(mutex);
  records.push_back(std::move(record));
}

size_t explain_begin() {
  const std::lock_guard lock(mutex);
  explain_depth.fetch_add(1);
  return records.size();
}

std::vector<CallRecord> explain_end(size_t begin) {
  const std::lock_guard lock(mutex);
  std::vector<CallRecord> since(records.begin() + static_cast<std::ptrdiff_t>(begin),
                                records.end());
  if (explain_depth.fetch_sub(1) == 1) records.clear();
  return since;
}

std::vector<TableRow>& listed_tables() {
  static std::vector<TableRow> tables;
  return tables;
}

}  // namespace pyops

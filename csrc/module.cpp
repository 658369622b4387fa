// Importing this module registers the operators with PyTorch; what it exports besides a quicker way
// to call some of them is insight only.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "core/explain.h"
#include "core/isa.h"
#include "core/peaks.h"
#include "core/place.h"
#include "core/scratch.h"
#include "direct_calls.h"

namespace py = pybind11;

namespace {

void set_isa_cap(const std::string& name) {
  pyops::Isa isa{};
  pyops::Arch arch{};
  if (pyops::parse_isa(name.c_str(), &isa)) return pyops::set_isa_cap(isa);
  if (pyops::parse_arch(name.c_str(), &arch)) return pyops::set_arch_cap(arch);
  throw std::invalid_argument(
      "isa: expected one of scalar, avx2, avx512, avx512_bf16, amx, sm_80, sm_90, got '" + name +
      "'");
}

py::list tables() {
  py::list rows;
  for (const pyops::TableRow& row : pyops::listed_tables()) {
    rows.append(py::dict(py::arg("op") = row.op, py::arg("kernel") = row.kernel,
                         py::arg("device") = row.device, py::arg("needs") = row.needs,
                         py::arg("dtypes") = row.dtypes, py::arg("condition") = row.condition));
  }
  return rows;
}

py::list explain_end(size_t begin) {
  py::list calls;
  for (const pyops::CallRecord& call : pyops::explain_end(begin)) {
    calls.append(py::dict(py::arg("op") = call.op, py::arg("shapes") = call.shapes,
                          py::arg("dtype") = call.dtype, py::arg("kernel") = call.kernel,
                          py::arg("rejected") = call.rejected));
  }
  return calls;
}

void explain_native(const std::string& op, const std::string& dtype, const std::string& reason) {
  if (!pyops::explaining()) return;
  pyops::explain_record({op, dtype, "native", {}, {{"every kernel of ours", reason}}});
}

py::list measure_peaks() {
  py::list rows;
  for (const pyops::Peak& peak : pyops::measure_peaks()) {
    rows.append(py::dict(py::arg("unit") = peak.unit, py::arg("threads") = peak.threads,
                         py::arg("gflops") = peak.gflops));
  }
  return rows;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  pyops::define_direct_calls(m);
  m.def("isa", [] { return pyops::isa_name(pyops::isa()); });
  m.def("isa_detected", [] { return pyops::isa_name(pyops::isa_detected()); });
  m.def("isa_cap", [] { return pyops::isa_name(pyops::isa_cap()); });
  m.def("arch_cap", [] { return pyops::arch_name(pyops::arch_cap()); });
  m.def("set_isa_cap", set_isa_cap);
  m.def("tables", tables);
  m.def("explain_begin", pyops::explain_begin);
  m.def("explain_end", explain_end);
  m.def("explain_native", explain_native);
  m.def("measure_peaks", measure_peaks);
  m.def("poison_scratch", pyops::poison_scratch);
  m.def("build_info", [] {
    return py::dict(py::arg("torch") = PYOPS_TORCH_VERSION, py::arg("compiler") = PYOPS_COMPILER,
                    py::arg("cuda") = pyops::kBuiltWithCuda,
                    py::arg("hopper") = pyops::is_built(pyops::Arch::kSm90));
  });
}

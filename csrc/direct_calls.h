#pragma once

#include <pybind11/pybind11.h>

namespace pyops {

void define_direct_calls(pybind11::module_& m);

}  // namespace pyops

// The functions of vectors, of the instruction set that this file is compiled for.
#include "core/simd.h"

using namespace pyops::PYOPS_ISA_NAMESPACE;

namespace {

template <class A, class F>
void apply(const A* x, int64_t count, A* y, F f) {
  for_vectors<A>(count, [&](int64_t j, auto n) { store(f(load(x + j, n)), y + j, n); });
}

template <class A>
void apply_named(char name, const A* x, int64_t count, A* y) {
  if (name == 'e') return apply(x, count, y, [](auto v) { return exp(v); });
  if (name == 'm') {
    return apply(x, count, y, [](auto v) {
      const auto one = decltype(v)::set1(1);
      return decltype(v)::max_magnitude(one, decltype(v)::max_magnitude(v, one));
    });
  }
  if (name == 's') return apply(x, count, y, [](auto v) { return sigmoid(v); });
  apply(x, count, y, [](auto v) { return tanh(v); });
}

}  // namespace

extern "C" {

void apply_float32(char name, const float* x, int64_t count, float* y) {
  apply_named(name, x, count, y);
}
void apply_float64(char name, const double* x, int64_t count, double* y) {
  apply_named(name, x, count, y);
}
}

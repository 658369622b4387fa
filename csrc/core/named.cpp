#include "core/named.h"

#include <new>
#include <sstream>

namespace pyops {
namespace {

// "conv2d of Float [2, 3, 8, 8], [4, 3, 3, 3] on cpu"; a dtype where it is another than before.
std::string call_of(const char* op, Tensors tensors) {
  std::ostringstream text;
  text << op;
  const Tensor *first = nullptr, *last = nullptr;
  for (const TensorRef t : tensors) {
    if (!t || (*t).is_nested()) continue;
    text << (first != nullptr ? ", " : " of ");
    if (first == nullptr) first = &*t;
    if (last == nullptr || last->scalar_type() != (*t).scalar_type()) {
      text << (*t).scalar_type() << " ";
    }
    text << (*t).sym_sizes();
    last = &*t;
  }
  if (first != nullptr) text << " on " << first->device();
  return text.str();
}

}  // namespace

void rethrow_named(const char* op, Tensors tensors) {
  try {
    throw;
  } catch (c10::Error& error) {
    const std::string call = call_of(op, tensors);
    const bool told = !error.context().empty() && error.context().back() == call;
    if (error.msg().rfind(op, 0) != 0 && !told) error.add_context(call);
    throw;
  } catch (const std::bad_alloc&) {  // which on the CPU kernels throw for memory of their own
    TORCH_CHECK(false, op, ": not enough memory for the workspace of ", call_of(op, tensors));
  }
}

}  // namespace pyops

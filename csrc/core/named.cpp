#include "core/named.h"

#include <new>
#include <sstream>

namespace pyops {
namespace {

// "conv2d of Float [2, 3, 8, 8], [4, 3, 3, 3] on cpu".
std::string call_of(const char* op, Tensors tensors) {
  std::ostringstream text;
  text << op;
  const Tensor* first = nullptr;
  for (const TensorRef t : tensors) {
    if (!t || (*t).is_nested()) continue;
    text << (first != nullptr ? ", " : " of ");
    if (first == nullptr) text << (first = &*t)->scalar_type() << " ";
    text << (*t).sym_sizes();
  }
  if (first != nullptr) text << " on " << first->device();
  return text.str();
}

}  // namespace

void rethrow_named(const char* op, Tensors tensors) {
  try {
    throw;
  } catch (c10::Error& error) {
    const std::string& message = error.msg();
    if (message.rfind(op, 0) != 0) error.add_context(call_of(op, tensors));
    throw;
  } catch (const std::bad_alloc&) {  // which on the CPU kernels throw for memory of their own
    TORCH_CHECK(false, op, ": not enough memory for the workspace of ", call_of(op, tensors));
  }
}

}  // namespace pyops

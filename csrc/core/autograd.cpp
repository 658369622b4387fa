#include "core/autograd.h"

#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>

namespace pyops {
namespace {

using torch::autograd::CompiledNodeArgs;
using torch::autograd::PackedArgs;
using torch::autograd::SavedVariable;
using torch::autograd::SwapSavedVariables;

variable_list run(const Gradient& gradient, const RecordedCall& call) {
  const auto defined = [](const Tensor& t) { return t.defined(); };
  if (std::none_of(call.grads.begin(), call.grads.end(), defined)) {
    return variable_list(call.wanted.size());
  }
  return gradient.backward(call);
}

class GradientNode final : public torch::autograd::Node {
 public:
  void keep(const Gradient& gradient, at::ArrayRef<TensorRef> saved, Values values) {
    gradient_ = &gradient;
    values_ = std::move(values);
    saved_.reserve(saved.size());
    for (const TensorRef t : saved) {
      const bool is_output = t && (*t).grad_fn().get() == this;
      saved_.emplace_back(t ? *t : Tensor(), is_output);
    }
  }

  std::string name() const override { return gradient_->name; }

  void release_variables() override {
    const std::lock_guard lock(mutex_);
    for (SavedVariable& variable : saved_) variable.reset_data();
  }

  void compiled_args(CompiledNodeArgs& args) const override {
    args.collect(name());  // one class of nodes serves all operators
    args.collect(saved_, /*is_output=*/true);
    args.collect(values_);
  }

  // As PyTorch's own nodes: the trace gets a call of a function of everything the node knows.
  variable_list apply_with_saved(const variable_list& grads, SwapSavedVariables& swapped) override {
    swapped.before(saved_);
    swapped.before(values_);
    PackedArgs packed;
    packed.pack(unpacked());
    packed.pack(wanted());
    for (const at::IValue& value : values_) packed.pack(value);
    std::vector<at::TypePtr> types;
    for (const at::IValue& argument : packed.vec()) types.push_back(argument.type());
    using torch::dynamo::autograd::IValuePacker;
    const auto metadata =
        IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
            torch::dynamo::autograd::get_input_metadata(next_edges()));
    const auto& compiler = torch::dynamo::autograd::getPyCompilerInterface();
    const std::string function =
        compiler->bind_function(swapped.get_py_compiler(), name(), functional(), std::move(types),
                                /*is_custom_function=*/true, /*is_traceable=*/false);
    auto results = compiler->call_function(swapped.get_py_compiler(), "apply_functional", function,
                                           grads, packed.vec(), metadata);
    swapped.after(saved_);
    swapped.after(values_);
    return results;
  }

 private:
  variable_list apply(variable_list&& grads) override {
    return run(*gradient_, {grads, unpacked(), values_, wanted()});
  }

  // Locks for itself alone: a gradient that is a graph runs the engine, which may come back here.
  variable_list unpacked() {
    const std::lock_guard lock(mutex_);
    variable_list tensors;
    tensors.reserve(saved_.size());
    for (const SavedVariable& variable : saved_) tensors.push_back(variable.unpack(getptr()));
    return tensors;
  }

  std::vector<bool> wanted() const {
    std::vector<bool> wanted(num_outputs());
    for (size_t k = 0; k < wanted.size(); ++k) wanted[k] = task_should_compute_output(k);
    return wanted;
  }

  torch::autograd::functional_apply_t functional() const {
    return [gradient = gradient_](const variable_list& grads, const Values& arguments) {
      PackedArgs packed(arguments);
      const auto saved = packed.unpack<variable_list>();
      const auto wanted = packed.unpack<std::vector<bool>>();
      const Values values(arguments.begin() + 2, arguments.end());
      return run(*gradient, {grads, saved, values, wanted});
    };
  }

  const Gradient* gradient_ = nullptr;
  std::vector<SavedVariable> saved_;
  Values values_;
};

// A node counts its own references since PyTorch 2.13.
using NodePointer = decltype(torch::autograd::Edge::function);

template <class Node>
NodePointer make_node() {
  if constexpr (std::is_same_v<NodePointer, std::shared_ptr<torch::autograd::Node>>) {
    return NodePointer(new Node, [](auto* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<Node>();
  }
}

}  // namespace

void record(const Gradient& gradient, at::ArrayRef<TensorRef> inputs,
            at::ArrayRef<TensorRef> outputs, at::ArrayRef<TensorRef> saved, Values values) {
  const NodePointer pointer = make_node<GradientNode>();
  auto& node = static_cast<GradientNode&>(*pointer);
  torch::autograd::edge_list edges;
  edges.reserve(inputs.size());
  for (const TensorRef t : inputs) {
    edges.push_back(t ? torch::autograd::impl::gradient_edge(*t) : torch::autograd::Edge());
  }
  node.set_next_edges(std::move(edges));
  for (const TensorRef t : outputs) torch::autograd::set_history(t ? *t : Tensor(), pointer);
  node.keep(gradient, saved, std::move(values));
}

}  // namespace pyops

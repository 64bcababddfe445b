/// @file operators.hpp
/// The operators that a loader knows: built-in ones, of which the operator table holds a row each, and a user's own.
#pragma once

#include <concepts>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "offramp/core/config.hpp"
#include "offramp/layer/operation.hpp"

namespace offramp {

namespace detail {

template <class T>
std::unique_ptr<Operation> make_operation(const Node& node, Index opset) {
  return std::make_unique<T>(node, opset);
}

}  // namespace detail

/// The built-in operators, by name. `Constant` and `If` are the graph's own and stand in no row.
OFFRAMP_SEPARABLE std::span<const OperatorInfo> operator_table();

/// The row of a built-in operator, or null.
OFFRAMP_SEPARABLE const OperatorInfo* find_operator(std::string_view name);

/// A user's operator as a plain type T with
///   explicit T(const Node&);
///   Shape output_shape(std::span<const TensorView> in) const;
///   void forward(std::span<const TensorView> in, const TensorView& out) const noexcept;
/// and, if it likes, `Cost cost(std::span<const TensorView> in, const TensorView& out) const noexcept`.
template <class T>
concept UserOperator = std::constructible_from<T, const Node&> &&
    requires(const T& t, std::span<const TensorView> in, const TensorView& out) {
  { t.output_shape(in) } -> std::convertible_to<Shape>;
  { t.forward(in, out) }
  noexcept;
};

namespace detail {

template <UserOperator T>
class UserOperation final : public Operation {
 public:
  UserOperation(const Node& node, Index) : op_(node) {}
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    set_output(out[0], required_input(in, 0).type, op_.output_shape(in));
  }
  Cost cost(std::span<const TensorView> in, std::span<const TensorView> out) const noexcept override {
    if constexpr (requires {
                    { op_.cost(in, out[0]) } -> std::convertible_to<Cost>;
                  }) {
      return op_.cost(in, out[0]);
    } else {
      return {};
    }
  }
  bool forward(const OperationRun& run) const noexcept override {
    op_.forward(run.in, run.out[0]);
    return true;
  }

 private:
  T op_;
};

}  // namespace detail

/// The operators that a loader knows: the built-in ones, and a user's own beside or instead of them.
class Operators {
 public:
  /// Of nodes that only the preparation makes; no file can name them.
  static constexpr std::string_view fused_domain = "offramp.fused";

  /// Adds a user's operator under an ONNX op_type (any domain).
  template <UserOperator T>
  Operators& add(std::string name) {
    own_[std::move(name)] = &detail::make_operation<detail::UserOperation<T>>;
    return *this;
  }

  /// Whether a user's operator computes this node.
  bool is_own(const Node& node) const { return node.domain != fused_domain && own_.contains(node.op); }
  bool has(const Node& node) const { return is_own(node) || (is_standard(node) && find_operator(node.op)); }

  /// Builds the operator of `node`; raises an Error that names it where it is unknown or its attributes do not fit.
  std::unique_ptr<Operation> make(const Node& node, Index opset) const;

 private:
  static bool is_standard(const Node& node) {
    return node.domain.empty() || node.domain == "ai.onnx" || node.domain == "offramp";
  }
  std::map<std::string, std::unique_ptr<Operation> (*)(const Node&, Index)> own_;
};

}  // namespace offramp

#if OFFRAMP_HAS_DEFINITIONS
#include "offramp/layer/operator_table.hpp"
#endif

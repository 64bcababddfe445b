/// @file samples.hpp
/// Which nodes compute every sample of a batch by itself, so that a batch may be walked in parts.
#pragma once

#include <algorithm>
#include <span>
#include <string_view>
#include <vector>

#include "offramp/core/config.hpp"
#include "offramp/graph/graph.hpp"
#include "offramp/layer/operators.hpp"

namespace offramp {

/// Where a value grows with the batch.
struct BatchAxis {
  static constexpr int none = -1;       ///< it does not
  static constexpr int irregular = -2;  ///< along several axes, or along one of which a part is always there
  int axis = none;
  int rank = 0;
  Index outer = 1;   ///< sizes in front of the axis, multiplied
  Index hidden = 1;  ///< how often the batch comes again along the axis itself, since a Reshape merged it

  bool grows() const noexcept { return axis != none; }
  int from_end() const noexcept { return axis - rank; }
  /// How often the batch comes again in the order of memory.
  Index rounds() const noexcept { return outer * hidden; }
};

namespace detail {

/// The axis that an attribute names, of a value of this rank.
inline int axis_in(const Node& n, Index fallback, int rank) {
  return static_cast<int>(from_front(n.integer("axis", fallback), rank));
}

/// The axes that a constant operand or an attribute names; a value that nothing is known of names them all.
inline bool names_axis(const Graph& g, const Node& n, std::size_t operand, std::string_view attribute, int axis,
                       int rank) {
  std::vector<Index> axes = n.integers(attribute);
  if (n.input(operand) != no_value) {
    if (!g.is_constant(n.input(operand))) return true;
    axes = known_integers(g[n.input(operand)].constant.view(), attribute);
  }
  if (axes.empty()) return true;
  return std::any_of(axes.begin(), axes.end(), [&](Index a) { return from_front(a, rank) == axis; });
}

/// Where the permutation that an attribute states has this axis; -1 where it has it not.
inline int seen_axis(const Node& n, std::string_view attribute, int axis) {
  const std::vector<Index> axes = n.integers(attribute);
  const auto at = std::find(axes.begin(), axes.end(), Index{axis});
  return at == axes.end() ? -1 : static_cast<int>(at - axes.begin());
}

}  // namespace detail

/// Whether a node only gives its input another shape.
inline bool only_reshapes(const Node& n) noexcept {
  return n.op == "Reshape" || n.op == "Flatten" || n.op == "Squeeze" || n.op == "Unsqueeze";
}

/// Whether a node of a prepared graph computes each sample from that sample alone. An operator that is not known to do
/// so, a user's own among them, is taken not to.
OFFRAMP_COLD inline bool keeps_samples_apart(const Graph& g, const Node& n, const Operators& operators,
                                             std::span<const BatchAxis> in, std::span<const BatchAxis> out) {
  const auto grow = [](const BatchAxis& a) { return a.grows(); };
  const auto irregular = [](const BatchAxis& a) { return a.axis == BatchAxis::irregular; };
  if (std::any_of(in.begin(), in.end(), irregular) || std::any_of(out.begin(), out.end(), irregular)) return false;
  const bool fills = n.op == "Expand" || n.op == "ConstantOfShape";
  if (std::none_of(in.begin(), in.end(), grow)) return fills || std::none_of(out.begin(), out.end(), grow);
  // A result that does not grow was made of all samples.
  if (out.empty() || !std::all_of(out.begin(), out.end(), grow)) return false;
  const Index hidden = std::find_if(in.begin(), in.end(), grow)->hidden;
  if (std::any_of(in.begin(), in.end(), [&](const BatchAxis& a) { return a.grows() && a.hidden != hidden; }))
    return false;
  const BatchAxis &x = in[0], &y = out[0];
  const auto first_axis = [&](std::span<const BatchAxis> operands) {
    return std::all_of(operands.begin(), operands.end(), [](const BatchAxis& a) { return !a.grows() || a.axis == 0; });
  };
  const auto aligned = [&](std::span<const BatchAxis> operands) {
    return std::all_of(operands.begin(), operands.end(),
                       [&](const BatchAxis& a) { return !a.grows() || a.from_end() == y.from_end(); });
  };
  if (n.op == "Attention" && n.domain == Operators::fused_domain) {
    const int axis = detail::seen_axis(n, "y_axes", y.axis);
    const bool mask_follows = in.size() < 4 || !in[3].grows() || in[3].from_end() == axis - x.rank;
    return axis < x.rank - 2 && mask_follows && detail::seen_axis(n, "q_axes", x.axis) == axis &&
           detail::seen_axis(n, "k_axes", in[1].axis) == axis && detail::seen_axis(n, "v_axes", in[2].axis) == axis;
  }
  if (n.domain == Operators::fused_domain) return first_axis(in) && y.axis == 0;
  const OperatorInfo* info = operators.is_own(n) ? nullptr : find_operator(n.op);
  if (info == nullptr) return false;
  const std::string_view group = info->group;
  if (group == "Elementwise" || n.op == "QuantizeLinear" || n.op == "DequantizeLinear") return aligned(in);
  if (group == "Convolution" || group == "Pooling" || n.op == "BatchNormalization" || n.op == "InstanceNormalization" ||
      n.op == "LRN" || n.op == "Resize" || n.op == "Upsample" || n.op == "DepthToSpace" || n.op == "SpaceToDepth" ||
      n.op == "QLinearConv" || n.op == "ConvInteger")
    return first_axis(in) && y.axis == 0;
  if (n.op == "Gemm")
    return x.axis == (n.integer("transA", 0) != 0 ? 1 : 0) && !in[1].grows() && aligned(in.subspan(2));
  if (n.op == "MatMul" || n.op == "MatMulInteger")
    return x.axis != x.rank - 1 && (!in[1].grows() || in[1].from_end() != -2) && aligned(in.subspan(2));
  if (n.op == "QLinearMatMul") return x.axis != x.rank - 1 && in.size() > 3 && !in[3].grows();
  if (group == "Softmax" || n.op == "LayerNormalization")
    return x.axis < detail::axis_in(n, group == "Softmax" && g.opset < 13 ? 1 : -1, x.rank);
  if (group == "Recurrent") return x.axis == (n.integer("layout", 0) != 0 ? 0 : 1);
  if (n.op == "CumSum") return !detail::names_axis(g, n, 1, "axis", x.axis, x.rank);
  if (group == "Reduction") return true;  // along the batch it would not grow
  if (n.op == "Concat") return aligned(in) && y.axis != detail::axis_in(n, 0, y.rank);
  if (n.op == "Split") return x.axis != detail::axis_in(n, 0, x.rank);
  if (n.op == "Gather") return !x.grows() || (!in[1].grows() && x.axis != detail::axis_in(n, 0, x.rank));
  if (n.op == "Slice") return !detail::names_axis(g, n, 3, "axes", x.axis, x.rank);
  if (n.op == "Transpose" || n.op == "Pad" || n.op == "Expand") return true;
  if (only_reshapes(n)) return x.rounds() % y.outer == 0;
  return n.op == "Identity" || n.op == "Dropout";
}

}  // namespace offramp

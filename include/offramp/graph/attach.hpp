/// @file attach.hpp
/// Puts exit heads on a graph, and takes outputs away from it.
#pragma once

#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "offramp/exit/head.hpp"
#include "offramp/graph/graph.hpp"

namespace offramp {

namespace detail {

/// Appends nodes to a graph, with names of their own.
class NodeWriter {
 public:
  NodeWriter(Graph& g, std::string prefix) : g_(g), prefix_(std::move(prefix)) {}

  ValueId emit(const std::string& op, std::vector<ValueId> in, std::vector<Attribute> attributes = {}) {
    Node n;
    n.op = op;
    n.name = prefix_ + "/" + op + "_" + std::to_string(count_++);
    n.inputs = std::move(in);
    n.attributes = std::move(attributes);
    n.outputs = {g_.add_value(n.name + "_output")};
    g_.nodes.push_back(std::move(n));
    return g_.nodes.back().outputs[0];
  }
  ValueId constant(const std::string& name, const Shape& shape, const std::vector<float>& values) {
    return g_.add_constant(prefix_ + "/" + name + "_" + std::to_string(count_++), Tensor::of<float>(shape, values));
  }
  ValueId integers(const std::string& name, const std::vector<Index>& values) {
    return g_.add_constant(prefix_ + "/" + name + "_" + std::to_string(count_++),
                           Tensor::of<Index>(Shape{static_cast<Index>(values.size())}, values));
  }
  /// Reduces over axis 1; newer opsets take the axes as an input.
  ValueId reduce_tokens(const std::string& op, ValueId v) {
    if (g_.opset >= 18) return emit(op, {v, integers("axes", {1})}, {{"keepdims", Index{0}}});
    return emit(op, {v}, {{"axes", std::vector<Index>{1}}, {"keepdims", Index{0}}});
  }

  /// The sum of all elements, as a scalar.
  ValueId reduce_sum(ValueId v) {
    if (g_.opset >= 13) return emit("ReduceSum", {v, integers("axes", {0, 1})}, {{"keepdims", Index{0}}});
    return emit("ReduceSum", {v}, {{"axes", std::vector<Index>{0, 1}}, {"keepdims", Index{0}}});
  }
  /// An operator with two outputs.
  std::pair<ValueId, ValueId> emit_two(const std::string& op, std::vector<ValueId> in,
                                       std::vector<Attribute> attributes = {}) {
    const ValueId first = emit(op, std::move(in), std::move(attributes));
    const ValueId second = g_.add_value(g_[first].name + "_second");
    g_.nodes.back().outputs.push_back(second);
    return {first, second};
  }

 private:
  Graph& g_;
  std::string prefix_;
  int count_ = 0;
};

}  // namespace detail

/// Appends the nodes of a head that reads `place`, and the log-softmax of `earlier` where it wants the exit before.
/// Returns its scores, [N, classes]. The graph needs opset 11 or later.
inline ValueId append_head(Graph& g, ValueId place, const Head& head, const std::string& prefix,
                           ValueId earlier = no_value) {
  OFFRAMP_REQUIRE(g.opset >= 11, "exit heads need opset 11 or later, the network has " + std::to_string(g.opset));
  OFFRAMP_REQUIRE(!head.reads_earlier || earlier != no_value, "the head reads an exit before it, and there is none");
  detail::NodeWriter w(g, prefix);
  ValueId v = place;
  Index height = head.input.height, width = head.input.width;
  for (std::size_t i = 0; i < head.layers.size(); ++i) {
    if (const auto* average = std::get_if<HeadAverage>(&head.layers[i])) {
      const Index n = average->size, down = (height + n - 1) / n, across = (width + n - 1) / n;
      v = w.emit("AveragePool", {v},
                 {{"kernel_shape", std::vector<Index>{n, n}},
                  {"strides", std::vector<Index>{n, n}},
                  {"pads", std::vector<Index>{0, 0, down * n - height, across * n - width}}});
      height = down, width = across;
    } else if (const auto* conv = std::get_if<HeadConv>(&head.layers[i])) {
      const Index k = conv->kernel, pad = k / 2;
      const ValueId weights = w.constant("weight", {conv->out, conv->in / conv->groups, k, k}, conv->weights);
      const ValueId bias = w.constant("bias", {conv->out}, conv->bias);
      v = w.emit("Conv", {v, weights, bias},
                 {{"kernel_shape", std::vector<Index>{k, k}},
                  {"pads", std::vector<Index>{pad, pad, pad, pad}},
                  {"group", conv->groups}});
      if (conv->relu) v = w.emit("Relu", {v});
    } else if (const auto* pool = std::get_if<HeadPool>(&head.layers[i])) {
      std::vector<ValueId> parts;
      if (head.input.positions() == 1 && !head.input.tokens) {
        parts.push_back(w.emit("Flatten", {v}, {{"axis", Index{1}}}));
      } else if (head.input.tokens) {
        if (pool->average) parts.push_back(w.reduce_tokens("ReduceMean", v));
        if (pool->maximum) parts.push_back(w.reduce_tokens("ReduceMax", v));
        if (pool->first_token) {
          const ValueId zero = g.add_constant(prefix + "/first", Tensor::of<Index>(Shape{}, std::vector<Index>{0}));
          parts.push_back(w.emit("Gather", {v, zero}, {{"axis", Index{1}}}));
        }
      } else {
        const bool image = height > 1 && width > 1;
        for (const Index cells : pool->grids) {
          const GridAxis down(height, cells), across(width, cells);
          const std::vector<Attribute> window{{"kernel_shape", std::vector<Index>{down.kernel, across.kernel}},
                                              {"strides", std::vector<Index>{down.stride, across.stride}}};
          const auto one = [&](bool is_used, const char* whole, const char* windowed) {
            if (!is_used) return;
            const ValueId pooled = cells == 1 || !image ? w.emit(whole, {v}) : w.emit(windowed, {v}, window);
            parts.push_back(w.emit("Flatten", {pooled}, {{"axis", Index{1}}}));
          };
          one(pool->average, "GlobalAveragePool", "AveragePool");
          one(pool->maximum, "GlobalMaxPool", "MaxPool");
        }
      }
      v = parts.size() == 1 ? parts[0] : w.emit("Concat", parts, {{"axis", Index{1}}});
    } else {
      const auto& dense = std::get<HeadDense>(head.layers[i]);
      if (head.reads_earlier && i + 1 == head.layers.size()) {
        const ValueId said = w.emit("LogSoftmax", {earlier}, {{"axis", Index{1}}});
        v = w.emit("Concat", {v, said}, {{"axis", Index{1}}});
      }
      const ValueId weights = w.constant("weight", {dense.out, dense.in}, dense.weights);
      const ValueId bias = w.constant("bias", {dense.out}, dense.bias);
      v = w.emit("Gemm", {v, weights, bias}, {{"transB", Index{1}}});
      if (dense.relu) v = w.emit("Relu", {v});
    }
  }
  return v;
}

/// The same graph with these outputs alone; what nothing needs any more is dropped. An input or a constant cannot be an
/// output, so it is handed on by an Identity.
inline Graph with_outputs(Graph g, const std::vector<ValueId>& outputs) {
  g.outputs = outputs;
  const std::vector<int> producer = g.producers();
  for (ValueId& v : g.outputs) {
    if (producer[static_cast<std::size_t>(v)] >= 0) {
      if (g[v].type == DType::none) g[v].type = DType::f32;
      continue;
    }
    Node n;
    n.op = "Identity";
    n.name = g[v].name + "_handed_on";
    n.inputs = {v};
    n.outputs = {g.add_value(n.name)};
    v = n.outputs[0];
    g[v].type = DType::f32;
    g.nodes.push_back(std::move(n));
  }
  g.sort();
  g.remove_dead_nodes();
  return g;
}

}  // namespace offramp

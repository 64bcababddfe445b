/// @file contrib.hpp
/// Quantized operators of the domain com.microsoft, as quantizers write them in QOperator form, in terms of ONNX's own.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "offramp/core/config.hpp"
#include "offramp/graph/graph.hpp"

namespace offramp {

/// Rewrites each such operator as DequantizeLinear, the operator on floats, QuantizeLinear; the preparation makes one
/// operator on bytes of them again. Operators that are not known stay and are refused by name.
OFFRAMP_COLD inline void expand_contrib(Graph& g) {
  std::vector<Node> nodes;
  for (Node& n : g.nodes) {
    const auto has = [&](std::size_t least) { return n.inputs.size() >= least; };
    if (n.domain != "com.microsoft" || n.outputs.empty()) {
      nodes.push_back(std::move(n));
      continue;
    }
    const std::string base = n.name.empty() ? g[n.outputs[0]].name : n.name;
    int count = 0;
    const auto emit = [&](const std::string& op, std::vector<ValueId> in, std::vector<Attribute> attributes = {}) {
      Node m;
      m.op = op;
      m.name = base + "/" + op + "_" + std::to_string(count++);
      m.inputs = std::move(in);
      m.attributes = std::move(attributes);
      m.outputs = {g.add_value(m.name + "_output")};
      nodes.push_back(std::move(m));
      return nodes.back().outputs[0];
    };
    const auto real = [&](std::size_t value, Index axis = 1) {
      return emit("DequantizeLinear", {n.input(value), n.input(value + 1), n.input(value + 2)}, {{"axis", axis}});
    };
    const auto bytes = [&](ValueId v, std::size_t scale) {
      Node q;
      q.op = "QuantizeLinear";
      q.name = base + "/QuantizeLinear";
      q.inputs = {v, n.input(scale), n.input(scale + 1)};
      q.outputs = {n.outputs[0]};
      nodes.push_back(std::move(q));
    };
    if ((n.op == "QLinearAdd" || n.op == "QLinearMul") && has(7)) {
      const ValueId a = real(0), b = real(3);
      bytes(emit(n.op == "QLinearAdd" ? "Add" : "Mul", {a, b}), 6);
    } else if ((n.op == "QLinearSigmoid" || n.op == "QLinearLeakyRelu") && has(4)) {
      const ValueId x = real(0);
      bytes(n.op == "QLinearSigmoid" ? emit("Sigmoid", {x}) : emit("LeakyRelu", {x}, n.attributes), 3);
    } else if (n.op == "QLinearGlobalAveragePool" && has(4) && n.integer("channels_last", 0) == 0) {
      bytes(emit("GlobalAveragePool", {real(0)}), 3);
    } else if (n.op == "QLinearAveragePool" && has(4) && n.integer("channels_last", 0) == 0) {
      bytes(emit("AveragePool", {real(0)}, n.attributes), 3);
    } else if (n.op == "QLinearConcat" && has(5) && (n.inputs.size() - 2) % 3 == 0) {
      std::vector<ValueId> parts;
      for (std::size_t i = 2; i + 2 < n.inputs.size(); i += 3) parts.push_back(real(i));
      bytes(emit("Concat", parts, {{"axis", n.integer("axis", 1)}}), 0);
    } else if (n.op == "QGemm" && has(6)) {
      const Index turned = n.integer("transB", 0);
      std::vector<ValueId> in{real(0), real(3, turned != 0 ? 0 : 1)};
      if (n.input(6) != no_value) {
        // The bias is in units of the sums.
        const ValueId unit = emit("Mul", {n.inputs[1], n.inputs[4]});
        in.push_back(emit("DequantizeLinear", {n.inputs[6], unit}, {{"axis", Index{0}}}));
      }
      const ValueId y =
          emit("Gemm", in, {{"transA", n.integer("transA", 0)}, {"transB", turned}, {"alpha", n.real("alpha", 1)}});
      if (n.input(7) != no_value) {
        bytes(y, 7);
      } else {
        nodes.back().outputs = {n.outputs[0]};
      }
    } else {
      nodes.push_back(std::move(n));
    }
  }
  g.nodes = std::move(nodes);
}

}  // namespace offramp

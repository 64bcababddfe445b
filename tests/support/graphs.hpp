/// @file graphs.hpp
/// Graphs built in code for the tests.
#pragma once

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "offramp/graph/graph.hpp"
#include "reference.hpp"

namespace test {

/// Adds nodes to a graph one call at a time.
struct Builder {
  offramp::Graph g;

  offramp::ValueId input(const std::string& name, std::vector<Index> sizes, offramp::DType type = offramp::DType::f32) {
    const auto v = g.add_value(name);
    g[v].type = type;
    g[v].has_shape = true;
    g[v].sizes = std::move(sizes);
    g.inputs.push_back(v);
    return v;
  }
  offramp::ValueId constant(const offramp::Shape& s, unsigned seed) {
    return g.add_constant("c" + std::to_string(g.values.size()), random_tensor(s, seed));
  }
  offramp::ValueId constant(offramp::Tensor t) {
    return g.add_constant("c" + std::to_string(g.values.size()), std::move(t));
  }
  offramp::ValueId node(const std::string& op, std::vector<offramp::ValueId> in,
                        std::vector<offramp::Attribute> attributes = {}) {
    offramp::Node n;
    n.op = op;
    n.name = op + "_" + std::to_string(g.nodes.size());
    n.inputs = std::move(in);
    n.attributes = std::move(attributes);
    n.outputs = {g.add_value(n.name + "_out")};
    g.nodes.push_back(n);
    return n.outputs[0];
  }
  void output(offramp::ValueId v, const std::string& name) {
    const auto out = node("Identity", {v});
    g[out].name = name;
    g[out].type = offramp::DType::f32;
    g.outputs.push_back(out);
  }
};

/// A residual CNN over [N,3,8,8] with batch norms and two early exits: every pass of the preparation has work in it.
inline offramp::Graph residual_network(Index classes = 4) {
  using offramp::Attribute;
  using offramp::Tensor;
  Builder b;
  b.g.opset = 13;
  const std::vector<Index> pads{1, 1, 1, 1}, three{3, 3};
  unsigned seed = 10;
  const auto norm = [&](offramp::ValueId v, Index c) {
    const auto positive = [&] { return b.constant(Tensor::of<float>({c}, random_floats(c, ++seed, 0.5f, 1.5f))); };
    const auto scale = positive();
    const auto bias = b.constant({c}, ++seed), mean = b.constant({c}, ++seed);
    return b.node("BatchNormalization", {v, scale, bias, mean, positive()}, {{"epsilon", 1e-5f}});
  };
  const auto conv = [&](offramp::ValueId v, Index in, Index out, Index stride) {
    return b.node("Conv", {v, b.constant({out, in, 3, 3}, ++seed)},
                  {{"kernel_shape", three}, {"pads", pads}, {"strides", std::vector<Index>{stride, stride}}});
  };
  const auto head = [&](offramp::ValueId v, Index c, const std::string& name) {
    const auto pooled = b.node("Flatten", {b.node("GlobalAveragePool", {v})}, {{"axis", Index{1}}});
    b.output(b.node("Gemm", {pooled, b.constant({classes, c}, ++seed), b.constant({classes}, ++seed)},
                    {{"transB", Index{1}}}),
             name);
  };
  auto x = b.input("input", {offramp::dynamic, 3, 8, 8});
  x = b.node("Relu", {norm(conv(x, 3, 8, 1), 8)});
  head(x, 8, "exit_0");
  for (int block = 0; block < 2; ++block) {
    const auto y = norm(conv(b.node("Relu", {norm(conv(x, 8, 8, 1), 8)}), 8, 8, 1), 8);
    x = b.node("Relu", {b.node("Add", {y, x})});
  }
  head(x, 8, "exit_1");
  const auto y = conv(b.node("Relu", {conv(x, 8, 20, 2)}), 20, 20, 1);
  const auto shortcut = b.node("Conv", {x, b.constant({20, 8, 1, 1}, ++seed)}, {{"strides", std::vector<Index>{2, 2}}});
  x = b.node("Relu", {b.node("Add", {shortcut, y})});
  head(x, 20, "logits");
  return b.g;
}

/// The same network with the weights of its layers scaled to keep the size of what goes through, as trained ones do.
inline offramp::Graph scaled(offramp::Graph g) {
  for (offramp::Node& n : g.nodes) {
    if (n.op != "Conv" && n.op != "Gemm" && n.op != "MatMul") continue;
    const offramp::Tensor w = g[n.inputs[1]].constant;
    const bool by_row = n.op == "Conv" || n.integer("transB", 0) != 0;
    const Index inputs = by_row ? w.count() / w.shape()[0] : w.shape()[0];
    offramp::Tensor t(offramp::DType::f32, w.shape());
    for (Index i = 0; i < w.count(); ++i)
      static_cast<float*>(t.mutable_data())[i] = 2 * w.view().f32()[i] / std::sqrt(static_cast<float>(inputs));
    n.inputs[1] = g.add_constant("scaled_" + std::to_string(g.values.size()), t);
  }
  return g;
}

}  // namespace test

/// @file operator_form.hpp
/// A quantized network in QOperator form: one operator on bytes in place of an operator on floats between its
/// dequantized operands and its quantization.
#pragma once

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "offramp/graph/quantized_patterns.hpp"

namespace offramp {

namespace passes {

/// Rewrites QDQ patterns as `QLinearConv`, `QLinearMatMul` and the operators of com.microsoft that ONNX Runtime's own
/// quantizer writes. What has no such operator stays in QDQ form.
class ToOperatorForm : private QuantizedPatterns {
 public:
  explicit ToOperatorForm(Graph& g) : QuantizedPatterns(g) {}

  void run() {
    for (std::size_t i = 0; i < g_.nodes.size(); ++i) {
      if (standard(g_.nodes[i], "QuantizeLinear")) behind(g_.nodes[i]);
    }
    for (std::size_t i = 0; i < g_.nodes.size(); ++i) {
      if (g_.nodes[i].op == "Gemm") gemm(g_.nodes[i], nullptr, nullptr);
    }
    erase_marked(g_);
    g_.remove_dead_nodes();
    g_.sort();
  }

 private:
  void behind(Node& q) {
    const auto y = scale_of(q.input(1), q.input(2));
    if (!y || !is_byte(y->type) || q.input(2) == no_value || q.integer("output_dtype", 0) != 0) return;
    Bounds b;
    const auto chain = chain_behind(q, b);
    Node *const n = chain.first, *const last = chain.second;
    if (!n) return;
    // An activation goes without saying where it bounds nothing that the bytes do not.
    if (range(*y, b) != range(*y, {})) return;
    const auto tail = [&] { n->inputs.insert(n->inputs.end(), {q.input(1), q.input(2)}); };
    if (n->op == "Conv" || n->op == "MatMul") {
      const Node *x = operand(n->input(0)), *w = weights(n->input(1), n->op == "Conv" ? 0 : 1);
      if (!x || !w || (n->op == "MatMul" && n->inputs.size() > 2)) return;
      ValueId bias = no_value;
      if (n->input(2) != no_value && (bias = sums(n->input(2), *x, *w)) == no_value) return;
      n->op = n->op == "Conv" ? "QLinearConv" : "QLinearMatMul";
      n->inputs = join({x, w});
      tail();
      if (bias != no_value) n->inputs.push_back(bias);
    } else if (n->op == "Gemm") {
      gemm(*n, last, &q);
      return;
    } else if (n->op == "Add") {
      const Node *a = operand(n->input(0)), *c = operand(n->input(1));
      if (!a || !c) return;
      contrib(*n, "QLinearAdd", join({a, c}));
      tail();
    } else if (n->op == "GlobalAveragePool") {
      const Node* x = operand(n->input(0));
      if (!x) return;
      contrib(*n, "QLinearGlobalAveragePool", join({x}));
      n->set("channels_last", Index{0});
      tail();
    } else if (n->op == "Concat" && n == last) {
      std::vector<const Node*> parts;
      for (const ValueId v : n->inputs) {
        parts.push_back(operand(v));
        if (!parts.back()) return;
      }
      contrib(*n, "QLinearConcat", {q.input(1), q.input(2)});
      for (const ValueId v : join(parts)) n->inputs.push_back(v);
    } else {
      if (n == last) movement(*n, q, *y);
      return;
    }
    take_chain(*n, *last, q);
  }

  // With null for `q` the result stays in float.
  void gemm(Node& n, Node* last, Node* q) {
    const Node *x = operand(n.input(0)), *w = weights(n.input(1), n.integer("transB", 0) != 0 ? 0 : 1);
    if (!standard(n, "Gemm") || !x || !w || (n.input(2) != no_value && n.real("beta", 1) != 1.0f)) return;
    ValueId bias = no_value;
    if (n.input(2) != no_value && (bias = sums(n.input(2), *x, *w)) == no_value) return;
    std::erase_if(n.attributes, [](const Attribute& a) { return a.name == "beta"; });
    contrib(n, "QGemm", join({x, w}));
    n.inputs.push_back(bias);
    if (!q) return;
    n.inputs.insert(n.inputs.end(), {q->input(1), q->input(2)});
    take_chain(n, *last, *q);
  }

  static void contrib(Node& n, const char* op, std::vector<ValueId> inputs) {
    n.op = op;
    n.domain = "com.microsoft";
    n.inputs = std::move(inputs);
  }
  /// The dequantization that an operand comes from, of bytes with one constant scale; or null.
  const Node* operand(ValueId v, bool any_count = false) {
    const Node* dq = m_.producer(v, "DequantizeLinear");
    if (!dq || !dq->domain.empty() || dq->input(2) == no_value) return nullptr;
    const auto s = scale_of(dq->input(1), dq->input(2), any_count);
    return s && is_byte(s->type) ? dq : nullptr;
  }
  /// The same of constant weights, which may have a scale for each channel of `axis`.
  const Node* weights(ValueId v, Index axis) {
    const Node* dq = operand(v, true);
    if (!dq || !g_.is_constant(dq->inputs[0])) return nullptr;
    const int rank = g_[dq->inputs[0]].constant.shape().rank();
    const Index own = dq->integer("axis", 1);
    const bool fits = g_[dq->inputs[1]].constant.count() == 1 || from_front(own, rank) == axis;
    return fits ? dq : nullptr;
  }
  static std::vector<ValueId> join(const std::vector<const Node*>& operands) {
    std::vector<ValueId> v;
    for (const Node* dq : operands) v.insert(v.end(), {dq->inputs[0], dq->inputs[1], dq->inputs[2]});
    return v;
  }
  /// The constant int32 bias in units of the sums of x and w, without a zero point, or none.
  ValueId sums(ValueId v, const Node& x, const Node& w) {
    const Node* dq = m_.producer(v, "DequantizeLinear");
    if (!dq || !dq->domain.empty() || !g_.is_constant(dq->inputs[0]) || !g_.is_constant(dq->inputs[1])) return no_value;
    const Tensor& bias = g_[dq->inputs[0]].constant;
    const TensorView unit = g_[dq->inputs[1]].constant.view(), xs = g_[x.inputs[1]].constant.view(),
                     ws = g_[w.inputs[1]].constant.view();
    if (!is_zero(dq->input(2)) || bias.type() != DType::i32 || xs.count() != 1 || unit.count() != ws.count())
      return no_value;
    for (Index i = 0; i < ws.count(); ++i) {
      const float expected = xs.f32()[0] * ws.f32()[i];
      if (!(std::fabs(unit.f32()[i] - expected) <= 1e-6f * expected)) return no_value;
    }
    return dq->inputs[0];
  }
};

}  // namespace passes

/// The same network in QOperator form. It answers the same, here and in ONNX Runtime; runtimes without the operators of
/// com.microsoft cannot read it, where QDQ form needs ONNX's own alone.
inline Graph operator_form(Graph g) {
  passes::ToOperatorForm(g).run();
  return g;
}

}  // namespace offramp

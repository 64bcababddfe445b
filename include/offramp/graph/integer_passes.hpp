/// @file integer_passes.hpp
/// Quantized networks, as others write them (QDQ or QOperator form), to nodes that compute with bytes from end to end.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "offramp/core/config.hpp"
#include "offramp/graph/quantized_patterns.hpp"
#include "offramp/layer/integer.hpp"

namespace offramp::passes {

/// Turns quantized patterns into the operators of layer/integer.hpp. What fits no pattern stays as it is and computes
/// in float between its quantizations.
class FuseIntegers : private QuantizedPatterns {
 public:
  FuseIntegers(Graph& g, const Inference& shapes) : QuantizedPatterns(g), shapes_(shapes) {}

  void run() {
    for (std::size_t i = 0; i < g_.nodes.size(); ++i) {
      if (standard(g_.nodes[i], "QLinearConv")) from_qlinear(g_.nodes[i], "IntegerConv");
      if (standard(g_.nodes[i], "QLinearMatMul")) from_qlinear(g_.nodes[i], "IntegerDense");
    }
    m_ = Matcher(g_);
    for (std::size_t i = 0; i < g_.nodes.size(); ++i) {
      if (standard(g_.nodes[i], "QuantizeLinear")) behind(g_.nodes[i]);
    }
    for (std::size_t i = 0; i < g_.nodes.size(); ++i) {
      Node& n = g_.nodes[i];
      if (n.op == "Conv" || n.op == "Gemm" || n.op == "MatMul") product(n, n, nullptr, {});
    }
    erase_marked(g_);
    g_.remove_dead_nodes();
    m_ = Matcher(g_);
    for (Node& n : g_.nodes) {
      if (n.op == "IntegerAdd" && n.domain == Operators::fused_domain) into_product(n);
    }
    for (Node& n : g_.nodes) into_product_of_reals(n);
    erase_marked(g_);
    g_.remove_dead_nodes();
    g_.sort();
  }

 private:
  /// Constant weights as signed bytes, with a scale for each channel of `axis` (`channels` of them).
  struct Weights {
    Tensor bytes;
    std::vector<float> scales;
  };
  static std::optional<Weights> weights_from(const Tensor& bytes, const TensorView& scale, const ByteScale& s,
                                             Index axis, Index wanted_axis) {
    if (!is_byte(bytes.type()) || s.zero != (bytes.type() == DType::u8 ? 128 : 0)) return {};
    const int rank = bytes.shape().rank();
    if (wanted_axis >= rank) return {};
    const Index channels = bytes.shape()[static_cast<int>(wanted_axis)];
    if (scale.count() != 1 && (from_front(axis, rank) != wanted_axis || scale.count() != channels)) return {};
    Weights w;
    for (Index i = 0; i < channels; ++i) w.scales.push_back(scale.f32()[scale.count() == 1 ? 0 : i]);
    w.bytes = bytes;
    if (bytes.type() == DType::u8) {
      w.bytes = Tensor(DType::i8, bytes.shape());
      detail::flip_signs(bytes.view(), static_cast<std::byte*>(w.bytes.mutable_data()));
    }
    return w;
  }
  std::optional<Weights> weights_of(ValueId v, Index axis) {
    Node* dq = m_.producer(v, "DequantizeLinear");
    if (!dq || !dq->domain.empty() || !g_.is_constant(dq->inputs[0])) return {};
    auto s = scale_of(dq->input(1), dq->input(2), true);
    if (!s) return {};
    const Tensor& bytes = g_[dq->inputs[0]].constant;
    if (dq->input(2) == no_value) s->zero = 0;
    return weights_from(bytes, g_[dq->input(1)].constant.view(), *s, dq->integer("axis", 1), axis);
  }
  /// The int32 bias of a product whose sums have these scales, or nothing where it is not known.
  OFFRAMP_COLD std::optional<std::vector<std::int32_t>> bias_of(ValueId v, const std::vector<double>& sum_scales) {
    std::vector<double> real;
    if (g_.is_constant(v)) {
      const TensorView b = g_[v].constant.view();
      for (Index i = 0; i < b.count(); ++i) real.push_back(real_at(b, i));
    } else if (Node* dq = m_.producer(v, "DequantizeLinear"); dq && g_.is_constant(dq->inputs[0])) {
      const TensorView b = g_[dq->inputs[0]].constant.view();
      if (!g_.is_constant(dq->input(1))) return {};
      const TensorView s = g_[dq->input(1)].constant.view();
      if (!is_zero(dq->input(2))) return {};
      for (Index i = 0; i < b.count(); ++i)
        real.push_back(real_at(b, i) * static_cast<double>(s.f32()[s.count() == 1 ? 0 : i]));
    } else {
      return {};
    }
    if (real.size() != sum_scales.size()) return {};
    std::vector<std::int32_t> bias;
    for (std::size_t i = 0; i < real.size(); ++i)
      bias.push_back(
          static_cast<std::int32_t>(std::clamp(std::nearbyint(real[i] / sum_scales[i]), -2147483648.0, 2147483647.0)));
    return bias;
  }

  void set_tail(Node& n, const ByteScale& y, const Bounds& b) const {
    const auto [low, high] = range(y, b);
    n.set("low", low);
    n.set("high", high);
    n.set("zero", Index{y.zero});
    n.set("type", static_cast<Index>(y.type));
  }
  // Makes `n` the product of bytes, with weights as [out][...] for a convolution or [k][n] for a matrix.
  void make_product(Node& n, const char* op, ValueId x, const ByteScale& xs, const Weights& w,
                    const std::optional<std::vector<std::int32_t>>& bias, const std::optional<ByteScale>& y,
                    const Bounds& b) {
    std::vector<float> scales;
    for (const float s : w.scales) {
      const float sum = xs.scale * s;
      scales.push_back(y ? sum / y->scale : sum);
    }
    const auto channels = static_cast<Index>(scales.size());
    const ValueId weights = constant(n, ".bytes", w.bytes);
    const ValueId scale = constant(n, ".scale", Tensor::of<float>({channels}, scales));
    const ValueId biases = bias ? constant(n, ".bias", Tensor::of<std::int32_t>({channels}, *bias)) : no_value;
    n.op = op;
    n.domain = std::string(Operators::fused_domain);
    n.inputs = {x, weights, biases, scale};
    n.set("x_zero", Index{xs.zero});
    if (y) {
      set_tail(n, *y, b);
    } else {
      n.set("low", b.low);
      n.set("high", b.high);
      n.set("type", static_cast<Index>(DType::f32));
    }
  }

  // Conv, Gemm or MatMul of dequantized operands; `q` quantizes what comes out of `last`, or is null.
  bool product(Node& n, Node& last, Node* q, const Bounds& bounds) {
    auto x = bytes_of(n.inputs[0]);
    const auto ramped = x || q || n.integer("group", 1) != 1 ? std::nullopt : ramped_bytes_of(n.inputs[0]);
    if (ramped && shapes_.views[static_cast<std::size_t>(ramped->x)].type != DType::f32) return false;
    if (ramped) x = std::pair{ByteScale{1.0f, ramped->by.zero}, ramped->x};
    if (!x || n.input(3) != no_value) return false;
    std::optional<ByteScale> y;
    if (q) {
      y = scale_of(q->input(1), q->input(2));
      if (!y || !is_byte(y->type)) return false;
    }
    ValueId bias = n.op == "MatMul" ? no_value : n.input(2);
    std::optional<Weights> w;
    if (n.op == "Conv") {
      w = weights_of(n.input(1), 0);
    } else {
      const bool turned = n.integer("transB", 0) != 0;
      if (n.integer("transA", 0) != 0 || n.real("alpha", 1) != 1.0f || (bias != no_value && n.real("beta", 1) != 1.0f))
        return false;
      w = weights_of(n.input(1), turned ? 0 : 1);
      if (w && w->bytes.shape().rank() != 2) return false;
      if (w && turned) {
        Tensor t(DType::i8, {w->bytes.shape()[1], w->bytes.shape()[0]});
        kernel::transpose(static_cast<const std::int8_t*>(w->bytes.data()), w->bytes.shape()[0], w->bytes.shape()[1],
                          static_cast<std::int8_t*>(t.mutable_data()));
        w->bytes = t;
      }
    }
    if (!w) return false;
    std::vector<double> sums;
    for (const float s : w->scales) sums.push_back(static_cast<double>(x->first.scale) * static_cast<double>(s));
    std::optional<std::vector<std::int32_t>> b;
    if (bias != no_value) {
      b = bias_of(bias, sums);
      if (!b) return false;
    }
    make_product(n, n.op == "Conv" ? "IntegerConv" : "IntegerDense", x->second, x->first, *w, b, y, bounds);
    if (ramped) {
      n.set("x_factor", ramped->by.factor);
      n.set("x_ramp", ramped->by.ramp);
    }
    if (q) take_chain(n, last, *q);
    return true;
  }

  // An activation of real numbers moves into the product of bytes that computes them.
  void into_product_of_reals(Node& n) {
    Bounds b;
    if (!n.domain.empty() || n.inputs.empty() || n.inputs[0] == no_value || !m_.is_private(n.inputs[0]) ||
        !bounded_by(n, b))
      return;
    Node* p = m_.producer(n.inputs[0]);
    if (!p || !is_integer_product(*p) || p->integer("type", 2) != static_cast<Index>(DType::f32)) return;
    const float low = p->real("low", b.low), high = p->real("high", b.high);
    p->set("low", std::min(std::max(low, b.low), b.high));
    p->set("high", std::min(std::max(high, b.low), b.high));
    take_output(*p, n);
    m_ = Matcher(g_);
  }

  // What a quantization stands behind.
  OFFRAMP_COLD void behind(Node& q) {
    const auto y = scale_of(q.input(1), q.input(2));
    if (!y || !is_byte(y->type) || q.integer("output_dtype", 0) != 0) return;
    Bounds b;
    const auto [n, last] = chain_behind(q, b);
    if (!n) return;
    if (n->op == "Conv" || n->op == "Gemm" || n->op == "MatMul") {
      product(*n, *last, &q, b);
    } else if (n->op == "Add") {
      addition(*n, *last, q, *y, b);
    } else if (n->op == "GlobalAveragePool") {
      const auto x = bytes_of(n->inputs[0]);
      if (!x) return;
      n->op = "IntegerGlobalPool";
      n->domain = std::string(Operators::fused_domain);
      n->inputs = {x->second};
      n->set("x_zero", Index{x->first.zero});
      n->set("scale", x->first.scale / y->scale);
      set_tail(*n, *y, b);
      take_chain(*n, *last, q);
    } else if (n == last) {
      movement(*n, q, *y);
    }
  }

  OFFRAMP_COLD void addition(Node& n, Node& last, Node& q, const ByteScale& y, const Bounds& bounds) {
    if (n.inputs.size() != 2) return;
    const auto a = bytes_of(n.inputs[0]), b = bytes_of(n.inputs[1]);
    if (!a || !b || shape(n.inputs[0]) != shape(n.inputs[1])) return;
    n.op = "IntegerAdd";
    n.domain = std::string(Operators::fused_domain);
    n.inputs = {a->second, b->second};
    const auto [low, high] = range(y, bounds);
    n.set("a_zero", Index{a->first.zero});
    n.set("y_scale", a->first.scale / y.scale);
    n.set("residual_zero", static_cast<float>(b->first.zero));
    n.set("residual_scale", b->first.scale / y.scale);
    n.set("sum_low", low);
    n.set("sum_high", high);
    n.set("zero", Index{y.zero});
    n.set("type", static_cast<Index>(y.type));
    take_chain(n, last, q);
  }

  // An addition of bytes moves into the product that computes one of its operands.
  OFFRAMP_COLD void into_product(Node& add) {
    for (const std::size_t side : {0u, 1u}) {
      const ValueId v = add.inputs[side], rest = add.inputs[1 - side];
      Node* p = m_.producer(v);
      if (!p || !is_integer_product(*p)) continue;
      if (!m_.is_private(v) || p->input(4) != no_value || p->integer("type", 2) == static_cast<Index>(DType::f32) ||
          rest == v)
        continue;
      if (is_depthwise(*p)) continue;
      // Which of the two went into the product does not matter to the sum, but their scales change places.
      const float zero = side == 0 ? add.real("residual_zero", 0) : static_cast<float>(add.integer("a_zero", 0));
      p->inputs.resize(5, no_value);
      p->inputs[4] = rest;
      p->set("y_scale", add.real(side == 0 ? "y_scale" : "residual_scale", 1));
      p->set("residual_scale", add.real(side == 0 ? "residual_scale" : "y_scale", 1));
      p->set("residual_zero", zero);
      p->set("sum_low", add.real("sum_low", 0));
      p->set("sum_high", add.real("sum_high", 255));
      p->set("zero", add.integer("zero", 0));
      p->set("type", add.integer("type", 2));
      take_output(*p, add);
      m_ = Matcher(g_);
      return;
    }
  }
  static bool is_integer_product(const Node& n) {
    return n.domain == Operators::fused_domain && (n.op == "IntegerConv" || n.op == "IntegerDense");
  }
  bool is_depthwise(const Node& n) const { return n.op == "IntegerConv" && n.integer("group", 1) > 1; }

  // QLinearConv and QLinearMatMul with constant parameters.
  OFFRAMP_COLD void from_qlinear(Node& n, const char* op) {
    if (n.inputs.size() < 8) return;
    const auto x = scale_of(n.inputs[1], n.inputs[2]), y = scale_of(n.inputs[6], n.inputs[7]);
    const auto ws = scale_of(n.inputs[4], n.inputs[5], true);
    if (!x || !y || !ws || !is_byte(x->type) || !is_byte(y->type) || !g_.is_constant(n.inputs[3])) return;
    const bool conv = std::string_view(op) == "IntegerConv";
    const Tensor& bytes = g_[n.inputs[3]].constant;
    if (!conv && bytes.shape().rank() != 2) return;
    const Index axis = conv ? 0 : 1;
    const auto w = weights_from(bytes, g_[n.inputs[4]].constant.view(), *ws, axis, axis);
    if (!w) return;
    std::optional<std::vector<std::int32_t>> bias;
    if (n.input(8) != no_value) {
      if (!g_.is_constant(n.input(8))) return;
      const TensorView b = g_[n.input(8)].constant.view();
      bias.emplace();
      for (Index i = 0; i < b.count(); ++i) bias->push_back(static_cast<std::int32_t>(integer_at(b, i)));
    }
    const ValueId in = n.inputs[0];
    make_product(n, op, in, *x, *w, bias, y, {});
  }

  const Shape& shape(ValueId v) const { return shapes_.views[static_cast<std::size_t>(v)].shape; }

  const Inference& shapes_;
};

}  // namespace offramp::passes

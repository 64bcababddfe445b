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

#include "offramp/graph/passes.hpp"
#include "offramp/layer/integer.hpp"

namespace offramp::passes {

/// Scale and zero point of a tensor of bytes.
struct ByteScale {
  float scale = 1;
  std::int32_t zero = 0;
  DType type = DType::u8;
  bool operator==(const ByteScale&) const = default;

  float low() const noexcept { return static_cast<float>(range_of(type).first - zero); }
  float high() const noexcept { return static_cast<float>(range_of(type).second - zero); }
};

/// Turns quantized patterns into the operators of layer/integer.hpp. What fits no pattern stays as it is and computes
/// in float between its quantizations.
class FuseIntegers {
 public:
  FuseIntegers(Graph& g, const Inference& shapes) : g_(g), shapes_(shapes), m_(g) {}

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
    erase_marked(g_);
    g_.remove_dead_nodes();
    g_.sort();
  }

 private:
  static bool standard(const Node& n, std::string_view op) { return n.op == op && n.domain.empty(); }

  std::optional<ByteScale> scale_of(ValueId scale, ValueId zero, bool any_count = false) const {
    if (!g_.is_constant(scale)) return {};
    const TensorView s = g_[scale].constant.view();
    if (s.type != DType::f32 || s.count() < 1 || (s.count() != 1 && !any_count)) return {};
    for (Index i = 0; i < s.count(); ++i) {
      if (!(s.f32()[i] > 0) || !std::isfinite(s.f32()[i])) return {};
    }
    ByteScale b{s.f32()[0]};
    if (zero != no_value) {
      if (!g_.is_constant(zero)) return {};
      const TensorView z = g_[zero].constant.view();
      if (z.count() < 1 || (z.count() != 1 && !any_count)) return {};
      b.type = z.type;
      b.zero = static_cast<std::int32_t>(integer_at(z, 0));
      for (Index i = 1; i < z.count(); ++i) {
        if (integer_at(z, i) != b.zero) return {};
      }
    }
    return b;
  }
  /// The scale of a value that is dequantized from bytes by one scale, and the bytes.
  std::optional<std::pair<ByteScale, ValueId>> bytes_of(ValueId v) {
    Node* dq = m_.producer(v, "DequantizeLinear");
    if (!dq || !dq->domain.empty() || g_.is_constant(dq->inputs[0])) return {};
    const auto s = scale_of(dq->input(1), dq->input(2));
    if (!s || !is_byte(s->type)) return {};
    return std::pair{*s, dq->inputs[0]};
  }
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
    if (scale.count() != 1 && ((axis < 0 ? axis + rank : axis) != wanted_axis || scale.count() != channels)) return {};
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
  std::optional<std::vector<std::int32_t>> bias_of(ValueId v, const std::vector<double>& sum_scales) {
    std::vector<double> real;
    if (g_.is_constant(v)) {
      const TensorView b = g_[v].constant.view();
      for (Index i = 0; i < b.count(); ++i) real.push_back(real_at(b, i));
    } else if (Node* dq = m_.producer(v, "DequantizeLinear"); dq && g_.is_constant(dq->inputs[0])) {
      const TensorView b = g_[dq->inputs[0]].constant.view();
      if (!g_.is_constant(dq->input(1))) return {};
      const TensorView s = g_[dq->input(1)].constant.view();
      if (dq->input(2) != no_value) {
        if (!g_.is_constant(dq->input(2))) return {};
        const TensorView z = g_[dq->input(2)].constant.view();
        for (Index i = 0; i < z.count(); ++i) {
          if (integer_at(z, i) != 0) return {};
        }
      }
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

  /// What a chain of activations allows, in real numbers.
  struct Bounds {
    float low = -std::numeric_limits<float>::infinity(), high = std::numeric_limits<float>::infinity();
  };
  bool bounded_by(const Node& n, Bounds& b) const {
    if (n.op == "Relu") {
      b.low = std::max(b.low, 0.0f);
      return true;
    }
    if (n.op != "Clip") return false;
    const auto bound = [&](std::size_t i, const char* name, float fallback) -> std::optional<float> {
      if (n.input(i) == no_value) return n.real(name, fallback);
      const auto s = m_.scalar(n.input(i));
      return s ? std::optional(static_cast<float>(*s)) : std::nullopt;
    };
    const auto low = bound(1, "min", b.low), high = bound(2, "max", b.high);
    if (!low || !high) return false;
    b.low = std::max(b.low, *low), b.high = std::min(b.high, *high);
    return true;
  }
  /// Bounds of quantized numbers, less the zero point.
  static std::pair<float, float> range(const ByteScale& y, const Bounds& b) {
    return {std::clamp(std::nearbyint(b.low / y.scale), y.low(), y.high()),
            std::clamp(std::nearbyint(b.high / y.scale), y.low(), y.high())};
  }

  void set_tail(Node& n, const ByteScale& y, const Bounds& b) const {
    const auto [low, high] = range(y, b);
    n.set("low", low);
    n.set("high", high);
    n.set("zero", Index{y.zero});
    n.set("type", static_cast<Index>(y.type));
  }
  ValueId constant(const Node& n, const char* what, Tensor t) { return g_.add_constant(n.name + what, std::move(t)); }

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
    const auto x = bytes_of(n.inputs[0]);
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
    if (q) take_chain(n, last, *q);
    return true;
  }

  // Gives `n` the output of `q`; what stood between them, `last` down to `n`, is dropped.
  void take_chain(Node& n, Node& last, Node& q) {
    const ValueId out = q.outputs[0];
    if (&last != &n) {
      Node* at = &last;
      while (at && at != &n) {
        Node* before = m_.producer(at->inputs[0]);
        adopt(n, *at);
        drop(*at);
        at = before;
      }
    }
    adopt(n, q);
    drop(q);
    n.outputs = {out};
    m_ = Matcher(g_);
  }

  // What a quantization stands behind.
  void behind(Node& q) {
    const auto y = scale_of(q.input(1), q.input(2));
    if (!y || !is_byte(y->type) || q.integer("output_dtype", 0) != 0) return;
    Bounds b;
    Node* last = m_.producer(q.inputs[0]);
    if (!last || !m_.is_private(q.inputs[0])) return;
    Node* n = last;
    while (n && bounded_by(*n, b)) {
      if (n->inputs[0] == no_value || !m_.is_private(n->inputs[0])) return;
      n = m_.producer(n->inputs[0]);
    }
    if (!n || !n->domain.empty()) return;
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

  void addition(Node& n, Node& last, Node& q, const ByteScale& y, const Bounds& bounds) {
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

  // Operators that move elements or pick the largest do the same to bytes of one scale.
  void movement(Node& n, Node& q, const ByteScale& y) {
    const bool one = n.op == "MaxPool" || n.op == "GlobalMaxPool" || n.op == "Reshape" || n.op == "Flatten" ||
                     n.op == "Transpose" || n.op == "Slice" || n.op == "Squeeze" || n.op == "Unsqueeze" ||
                     n.op == "Identity" || n.op == "Pad";
    if (!(one || n.op == "Concat") || n.outputs.size() != 1) return;
    std::vector<ValueId> bytes;
    for (std::size_t i = 0; i < (one ? 1 : n.inputs.size()); ++i) {
      const auto x = bytes_of(n.inputs[i]);
      if (!x || !(x->first == y)) return;
      bytes.push_back(x->second);
    }
    if (n.op == "Pad") {
      if (n.text("mode", "constant") != "constant" || g_.opset < 11) return;
      const auto value = n.input(2) == no_value ? std::optional(0.0) : m_.scalar(n.input(2));
      if (!value || *value != 0) return;
      Tensor zero(y.type, {});
      put_integer({y.type, {}, zero.mutable_data()}, 0, y.zero);
      n.inputs.resize(std::max<std::size_t>(3, n.inputs.size()), no_value);
      n.inputs[2] = constant(n, ".zero", zero);
    }
    for (std::size_t i = 0; i < bytes.size(); ++i) n.inputs[i] = bytes[i];
    take_chain(n, n, q);
  }

  // An addition of bytes moves into the product that computes one of its operands.
  void into_product(Node& add) {
    for (const std::size_t side : {0u, 1u}) {
      const ValueId v = add.inputs[side], rest = add.inputs[1 - side];
      Node* p = m_.producer(v);
      if (!p || p->domain != Operators::fused_domain || (p->op != "IntegerConv" && p->op != "IntegerDense")) continue;
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
  bool is_depthwise(const Node& n) const { return n.op == "IntegerConv" && n.integer("group", 1) > 1; }

  // QLinearConv and QLinearMatMul with constant parameters.
  void from_qlinear(Node& n, const char* op) {
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

  Graph& g_;
  const Inference& shapes_;
  Matcher m_;
};

}  // namespace offramp::passes

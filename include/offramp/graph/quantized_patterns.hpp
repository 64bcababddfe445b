/// @file quantized_patterns.hpp
/// What quantized networks look like, whoever wrote them: bytes with a scale, and operators between dequantized
/// operands and a quantization.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
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

/// A tensor in float that is rounded to bytes by ramps, and how.
struct RampedBytes {
  ValueId x = no_value;
  kernel::RampedRounding by;
};

/// Finds quantized patterns in a graph. The base of passes that rewrite them.
class QuantizedPatterns {
 protected:
  explicit QuantizedPatterns(Graph& g) : g_(g), m_(g) {}

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
  /// Whether a zero point is absent, or known to be 0 everywhere.
  bool is_zero(ValueId zero) const {
    if (zero == no_value) return true;
    if (!g_.is_constant(zero)) return false;
    const TensorView z = g_[zero].constant.view();
    for (Index i = 0; i < z.count(); ++i) {
      if (integer_at(z, i) != 0) return false;
    }
    return true;
  }
  /// The scale of a value that is dequantized from bytes by one scale, and the bytes.
  std::optional<std::pair<ByteScale, ValueId>> bytes_of(ValueId v) {
    Node* dq = m_.producer(v, "DequantizeLinear");
    if (!dq || !dq->domain.empty() || g_.is_constant(dq->inputs[0])) return {};
    const auto s = scale_of(dq->input(1), dq->input(2));
    if (!s || !is_byte(s->type)) return {};
    return std::pair{*s, dq->inputs[0]};
  }

  /// What `kernel::RampedRounding` says, written in ONNX's operators as `quantize_heads` does.
  std::optional<RampedBytes> ramped_bytes_of(ValueId v) {
    const auto producer = [&](const Node* n, std::size_t i, std::string_view op) -> const Node* {
      const Node* p = n && n->input(i) != no_value ? m_.producer(n->input(i), op) : nullptr;
      return p && p->domain.empty() ? p : nullptr;
    };
    const auto scalar = [&](const Node* n, std::size_t i) {
      const auto s = n && n->input(i) != no_value ? m_.scalar(n->input(i)) : std::nullopt;
      return s ? static_cast<float>(*s) : std::numeric_limits<float>::quiet_NaN();
    };
    const Node* sum = m_.producer(v, "Add");
    const Node *round = producer(sum, 0, "Round"), *line = producer(sum, 1, "Mul"), *bent = producer(line, 0, "Sub");
    const Node *rest = producer(bent, 0, "Sub"), *flat = producer(bent, 1, "Clip");
    const Node *bounded = producer(round, 0, "Clip"), *scaled = producer(bounded, 0, "Mul");
    if (!scaled || !rest || !flat || !sum->domain.empty() || g_.opset < 11) return {};
    if (rest->input(0) != bounded->outputs[0] || rest->input(1) != round->outputs[0] ||
        flat->input(0) != rest->outputs[0] || scaled->input(0) == no_value)
      return {};
    const float factor = scalar(scaled, 1), low = scalar(bounded, 1), most = scalar(flat, 2);
    if (!(factor > 0 && std::isfinite(factor) && low <= 0 && low >= -255 && most >= 0 && most < 0.5f)) return {};
    const kernel::RampedRounding by{factor, static_cast<std::int32_t>(-low), 0.5f - most};
    const bool fits = low == by.low() && scalar(bounded, 2) == by.high() && scalar(flat, 1) == -most &&
                      std::fabs(scalar(line, 1) * by.ramp - 0.5f) < 1e-6f;
    return fits ? std::optional(RampedBytes{scaled->inputs[0], by}) : std::nullopt;
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

  /// The operator that a quantization stands behind, alone but for activations, whose bounds go to `b`; and the last of
  /// these activations, or the operator itself. Null where there is none.
  std::pair<Node*, Node*> chain_behind(const Node& q, Bounds& b) {
    Node* last = m_.producer(q.inputs[0]);
    if (!last || !m_.is_private(q.inputs[0])) return {};
    Node* n = last;
    while (n && bounded_by(*n, b)) {
      if (n->inputs[0] == no_value || !m_.is_private(n->inputs[0])) return {};
      n = m_.producer(n->inputs[0]);
    }
    if (!n || !n->domain.empty()) return {};
    return {n, last};
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

  ValueId constant(const Node& n, const char* what, Tensor t) { return g_.add_constant(n.name + what, std::move(t)); }

  Graph& g_;
  Matcher m_;
};

}  // namespace offramp::passes

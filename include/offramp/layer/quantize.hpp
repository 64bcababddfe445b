/// @file quantize.hpp
/// Between float32 and bytes: QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include "offramp/layer/element.hpp"
#include "offramp/layer/operation.hpp"

namespace offramp {

constexpr bool is_byte(DType t) noexcept {
  return t == DType::u8 || t == DType::i8;
}

/// The smallest and largest number of an integer type of up to 32 bits.
constexpr std::pair<std::int64_t, std::int64_t> range_of(DType t) noexcept {
  switch (t) {
    case DType::u8:
      return {0, 255};
    case DType::i8:
      return {-128, 127};
    case DType::u16:
      return {0, 65535};
    case DType::i16:
      return {-32768, 32767};
    default:
      return {INT32_MIN, INT32_MAX};
  }
}

/// round(v) + zero, saturated: what ONNX makes of a number that it quantizes. A NaN becomes the zero point.
inline std::int64_t quantized(double v, std::int64_t zero, DType type) noexcept {
  const auto [low, high] = range_of(type);
  if (v != v) v = 0;
  const double r = std::nearbyint(std::clamp(v, -4294967296.0, 4294967296.0));
  return std::clamp(static_cast<std::int64_t>(r) + zero, low, high);
}

namespace detail {

/// The axis along which scales differ, or -1 where there is one for all.
inline int scale_axis(const TensorView& scale, const TensorView& x, Index axis) {
  if (scale.count() == 1) return -1;
  const Index a = from_front(axis, x.shape.rank());
  OFFRAMP_REQUIRE(
      a >= 0 && a < x.shape.rank() && scale.shape.rank() == 1 && scale.count() == x.shape[static_cast<int>(a)],
      "scale " + scale.shape.text() + " does not fit axis " + std::to_string(axis) + " of " + x.shape.text());
  return static_cast<int>(a);
}

/// What both directions have: a scale and a zero point, for all elements or along an axis.
class ScaledOperation : public Operation {
 public:
  explicit ScaledOperation(const Node& node) : axis_(node.integer("axis", 1)) {
    OFFRAMP_REQUIRE(node.integer("block_size", 0) == 0, "scales for blocks are not supported");
  }

 protected:
  void check(std::span<const TensorView> in) const {
    const TensorView& scale = float_input(in, 1);
    scale_axis(scale, in[0], axis_);
    if (const TensorView* z = optional_input(in, 2))
      OFFRAMP_REQUIRE(z->count() == scale.count(),
                      "scale " + scale.shape.text() + " and zero point " + z->shape.text() + " differ");
  }
  // Calls f(first, count, scale, zero point) for runs of elements that share a scale.
  template <class F>
  void each_run(const OperationRun& run, F&& f) const noexcept {
    const TensorView &x = run.in[0], &scale = run.in[1];
    const TensorView* z = optional_input(run.in, 2);
    const auto zero = [&](Index i) { return z ? integer_at(*z, i) : 0; };
    if (scale.count() == 1) return f(Index{0}, x.count(), scale.f32()[0], zero(0));
    const int axis = static_cast<int>(from_front(axis_, x.shape.rank()));
    const Index outer = x.shape.count(0, axis), n = x.shape[axis], inner = x.shape.count(axis + 1, x.shape.rank());
    for (Index o = 0; o < outer; ++o) {
      for (Index c = 0; c < n; ++c) f((o * n + c) * inner, inner, scale.f32()[c], zero(c));
    }
  }

 private:
  Index axis_;
};

}  // namespace detail

/// ONNX QuantizeLinear: round(x / scale) + zero point, saturated.
class QuantizeLinearOperation final : public detail::ScaledOperation {
 public:
  QuantizeLinearOperation(const Node& node, Index)
      : ScaledOperation(node), type_(static_cast<DType>(node.integer("output_dtype", 0))) {}

  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView& x = required_input(in, 0);
    OFFRAMP_REQUIRE(x.type == DType::f32 || x.type == DType::i32, "cannot take " + std::string(name_of(x.type)));
    check(in);
    const TensorView* z = optional_input(in, 2);
    const DType type = z ? z->type : type_ == DType::none ? DType::u8 : type_;
    OFFRAMP_REQUIRE(is_byte(type) || type == DType::u16 || type == DType::i16,
                    "cannot quantize to " + std::string(name_of(type)));
    set_output(out[0], type, x.shape);
  }
  Cost cost(std::span<const TensorView> in, std::span<const TensorView>) const noexcept override {
    return Cost::plain(2 * in[0].count());
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &y = run.out[0];
    each_run(run, [&](Index first, Index n, float scale, std::int64_t zero) {
      if (x.type == DType::f32 && is_byte(y.type)) {
        run.kernels.integer->quantize(x.f32() + first, y.as<std::uint8_t>() + first, n, scale,
                                      static_cast<std::int32_t>(zero), y.type == DType::i8);
        return;
      }
      for (Index i = first; i < first + n; ++i)
        put_integer(y, i, quantized(real_at(x, i) / static_cast<double>(scale), zero, y.type));
    });
    return true;
  }

 private:
  DType type_;
};

/// ONNX DequantizeLinear: (x - zero point) scale.
class DequantizeLinearOperation final : public detail::ScaledOperation {
 public:
  DequantizeLinearOperation(const Node& node, Index) : ScaledOperation(node) {}

  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView& x = required_input(in, 0);
    OFFRAMP_REQUIRE(is_byte(x.type) || x.type == DType::i32 || x.type == DType::u16 || x.type == DType::i16,
                    "cannot take " + std::string(name_of(x.type)));
    check(in);
    if (const TensorView* z = optional_input(in, 2))
      OFFRAMP_REQUIRE(z->type == x.type, "zero point and input are of different types");
    set_output(out[0], DType::f32, x.shape);
  }
  Cost cost(std::span<const TensorView> in, std::span<const TensorView>) const noexcept override {
    return Cost::plain(2 * in[0].count());
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &y = run.out[0];
    each_run(run, [&](Index first, Index n, float scale, std::int64_t zero) {
      if (is_byte(x.type)) {
        run.kernels.integer->dequantize(x.as<std::uint8_t>() + first, y.as<float>() + first, n, scale,
                                        static_cast<std::int32_t>(zero), x.type == DType::i8);
        return;
      }
      for (Index i = first; i < first + n; ++i)
        y.as<float>()[i] = static_cast<float>(static_cast<double>(integer_at(x, i) - zero)) * scale;
    });
    return true;
  }
};

/// ONNX DynamicQuantizeLinear: to unsigned bytes over the range of the input itself, with scale and zero point.
class DynamicQuantizeLinearOperation final : public Operation {
 public:
  DynamicQuantizeLinearOperation(const Node&, Index) {}

  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    set_output(out[0], DType::u8, float_input(in, 0).shape);
    if (out.size() > 1) set_output(out[1], DType::f32, {});
    if (out.size() > 2) set_output(out[2], DType::u8, {});
  }
  Cost cost(std::span<const TensorView> in, std::span<const TensorView>) const noexcept override {
    return Cost::plain(4 * in[0].count());
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView& x = run.in[0];
    float low = 0, high = 0;
    for (Index i = 0; i < x.count(); ++i) {
      low = std::min(low, x.f32()[i]);
      high = std::max(high, x.f32()[i]);
    }
    const float range = (high - low) / 255;
    const float scale = range > 0 && std::isfinite(range) ? range : 1;
    const auto zero = static_cast<std::int32_t>(quantized(static_cast<double>(-low / scale), 0, DType::u8));
    if (run.out[0].data) run.kernels.integer->quantize(x.f32(), run.out[0].data, x.count(), scale, zero, false);
    if (run.out.size() > 1 && run.out[1].data) *run.out[1].as<float>() = scale;
    if (run.out.size() > 2 && run.out[2].data) put_integer(run.out[2], 0, zero);
    return true;
  }
};

}  // namespace offramp

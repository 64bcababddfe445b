/// @file elementwise.hpp
/// Every operator that works element by element: one loop for one operand, one for two with broadcasting; what is
/// special about an operator is a row in a table.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "offramp/layer/element.hpp"
#include "offramp/layer/operation.hpp"

namespace offramp {

/// A function of one element. `alpha` and `beta` are the operator's attributes.
struct UnaryFunction {
  std::string_view name;
  double (*real)(double x, double alpha, double beta);
  std::int64_t (*integer)(std::int64_t x) = nullptr;  ///< null: floating point only
  kernel::Unary kernel = kernel::Unary::count;        ///< `count`: no vector kernel
  float alpha = 0, beta = 0;                          ///< defaults
  Index executed = 1;                                 ///< additions and multiplications of the vector kernel
};

inline constexpr UnaryFunction unary_functions[] = {
    {"Abs", [](double x, double, double) { return std::fabs(x); }, [](std::int64_t x) { return x < 0 ? -x : x; },
     kernel::Unary::abs},
    {"Neg", [](double x, double, double) { return -x; }, [](std::int64_t x) { return -x; }, kernel::Unary::neg},
    {"Sign", [](double x, double, double) { return x > 0   ? 1.0
                                                   : x < 0 ? -1.0
                                                           : x; },
     [](std::int64_t x) { return std::int64_t{x > 0} - std::int64_t{x < 0}; }},
    {"Relu", [](double x, double, double) { return x < 0 ? 0 : x; },
     [](std::int64_t x) { return std::max<std::int64_t>(x, 0); }, kernel::Unary::relu},
    {"LeakyRelu", [](double x, double a, double) { return x < 0 ? a * x : x; }, nullptr, kernel::Unary::leaky_relu,
     0.01f},
    {"ThresholdedRelu", [](double x, double a, double) { return x > a ? x : 0; }, nullptr, kernel::Unary::count, 1.0f},
    {"Elu", [](double x, double a, double) { return x < 0 ? a * std::expm1(x) : x; }, nullptr, kernel::Unary::elu, 1.0f,
     0, 18},
    {"Selu", [](double x, double a, double b) { return b * (x <= 0 ? a * std::expm1(x) : x); }, nullptr,
     kernel::Unary::count, 1.67326319217681884765625f, 1.05070102214813232421875f},
    {"Celu", [](double x, double a, double) { return std::max(0.0, x) + std::min(0.0, a * std::expm1(x / a)); },
     nullptr, kernel::Unary::count, 1.0f},
    {"Sigmoid", [](double x, double, double) { return 1 / (1 + std::exp(-x)); }, nullptr, kernel::Unary::sigmoid, 0, 0,
     18},
    {"HardSigmoid", [](double x, double a, double b) { return std::clamp(a * x + b, 0.0, 1.0); }, nullptr,
     kernel::Unary::hard_sigmoid, 0.2f, 0.5f, 2},
    {"HardSwish", [](double x, double, double) { return x * std::clamp(x / 6 + 0.5, 0.0, 1.0); }, nullptr,
     kernel::Unary::hard_swish, 0, 0, 3},
    {"Silu", [](double x, double, double) { return x / (1 + std::exp(-x)); }, nullptr, kernel::Unary::silu, 0, 0, 19},
    {"Gelu", [](double x, double, double) { return 0.5 * x * (1 + std::erf(x * 0.70710678118654752440)); }, nullptr,
     kernel::Unary::gelu, 0, 0, 26},
    {"Mish", [](double x, double, double) { return x * std::tanh(std::log1p(std::exp(x))); }},
    {"Tanh", [](double x, double, double) { return std::tanh(x); }, nullptr, kernel::Unary::tanh, 0, 0, 33},
    {"Softplus", [](double x, double, double) { return x > 30 ? x : std::log1p(std::exp(x)); }},
    {"Softsign", [](double x, double, double) { return x / (1 + std::fabs(x)); }},
    {"Shrink", [](double x, double bias, double lambda) { return x < -lambda  ? x + bias
                                                                 : x > lambda ? x - bias
                                                                              : 0; },
     nullptr, kernel::Unary::count, 0.0f, 0.5f},
    {"Exp", [](double x, double, double) { return std::exp(x); }, nullptr, kernel::Unary::exp, 0, 0, 16},
    {"Log", [](double x, double, double) { return std::log(x); }},
    {"Sqrt", [](double x, double, double) { return std::sqrt(x); }, nullptr, kernel::Unary::sqrt},
    {"Reciprocal", [](double x, double, double) { return 1 / x; }, nullptr, kernel::Unary::reciprocal},
    {"Erf", [](double x, double, double) { return std::erf(x); }, nullptr, kernel::Unary::erf, 0, 0, 23},
    {"Ceil", [](double x, double, double) { return std::ceil(x); }},
    {"Floor", [](double x, double, double) { return std::floor(x); }},
    {"Round", [](double x, double, double) { return std::nearbyint(x); }},
    {"Sin", [](double x, double, double) { return std::sin(x); }},
    {"Cos", [](double x, double, double) { return std::cos(x); }},
    {"Tan", [](double x, double, double) { return std::tan(x); }},
    {"Asin", [](double x, double, double) { return std::asin(x); }},
    {"Acos", [](double x, double, double) { return std::acos(x); }},
    {"Atan", [](double x, double, double) { return std::atan(x); }},
    {"Sinh", [](double x, double, double) { return std::sinh(x); }},
    {"Cosh", [](double x, double, double) { return std::cosh(x); }},
    {"Asinh", [](double x, double, double) { return std::asinh(x); }},
    {"Acosh", [](double x, double, double) { return std::acosh(x); }},
    {"Atanh", [](double x, double, double) { return std::atanh(x); }},
};

/// The row of `name`, or null.
inline const UnaryFunction* find_unary(std::string_view name) noexcept {
  const auto* i = std::ranges::find(unary_functions, name, &UnaryFunction::name);
  return i == std::end(unary_functions) ? nullptr : i;
}

/// Any operator of unary_functions.
class UnaryOperation final : public Operation {
 public:
  UnaryOperation(const Node& node, Index) : f_(*find_unary(node.op)), alpha_(f_.alpha), beta_(f_.beta) {
    alpha_ = node.real("alpha", alpha_);
    beta_ = node.real("beta", beta_);
    if (node.op == "Selu") beta_ = node.real("gamma", beta_);
    if (node.op == "Shrink") {
      alpha_ = node.real("bias", alpha_);
      beta_ = node.real("lambd", beta_);
    }
    OFFRAMP_REQUIRE(node.op != "Gelu" || node.text("approximate", "none") == "none",
                    "approximate Gelu is not supported");
  }

  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView& x = required_input(in, 0);
    OFFRAMP_REQUIRE(is_float(x.type) || (f_.integer && x.type != DType::boolean),
                    "cannot take " + std::string(name_of(x.type)));
    set_output(out[0], x.type, x.shape);
  }
  Cost cost(std::span<const TensorView> in, std::span<const TensorView>) const noexcept override {
    return Cost::plain(in[0].count());
  }
  Index executed(std::span<const TensorView> in, std::span<const TensorView>) const noexcept override {
    return in[0].count() * f_.executed;
  }
  bool in_place(std::size_t) const noexcept override { return true; }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &y = run.out[0];
    const Index n = x.count();
    if (x.type == DType::f32 && f_.kernel != kernel::Unary::count) {
      run.kernels.unary(f_.kernel, x.f32(), y.as<float>(), n, alpha_, beta_);
    } else if (is_float(x.type)) {
      const auto a = static_cast<double>(alpha_), b = static_cast<double>(beta_);
      for (Index i = 0; i < n; ++i) put_real(y, i, f_.real(real_at(x, i), a, b));
    } else {
      for (Index i = 0; i < n; ++i) put_integer(y, i, f_.integer(integer_at(x, i)));
    }
    return true;
  }

 private:
  const UnaryFunction& f_;
  float alpha_, beta_;
};

/// A function of two elements. Integer division by zero gives 0; the network that does it has no right answer.
struct BinaryFunction {
  std::string_view name;
  double (*real)(double, double) = nullptr;
  std::int64_t (*integer)(std::int64_t, std::int64_t) = nullptr;
  std::uint64_t (*natural)(std::uint64_t, std::uint64_t) = nullptr;  ///< for unsigned types
  bool (*truth)(bool, bool) = nullptr;                               ///< for bool
  bool is_test = false;                                              ///< the result is bool
  kernel::Binary kernel = kernel::Binary::count;
  Index flops = 1;
};

namespace detail {

inline std::int64_t wrap(std::uint64_t x) noexcept {
  return static_cast<std::int64_t>(x);
}
inline std::uint64_t unwrap(std::int64_t x) noexcept {
  return static_cast<std::uint64_t>(x);
}

inline std::int64_t divide(std::int64_t a, std::int64_t b) noexcept {
  if (b == 0) return 0;
  return b == -1 ? wrap(0 - unwrap(a)) : a / b;
}
inline std::int64_t truncated_modulo(std::int64_t a, std::int64_t b) noexcept {
  return b == 0 || b == -1 ? 0 : a % b;
}
inline std::int64_t floored_modulo(std::int64_t a, std::int64_t b) noexcept {
  const std::int64_t m = truncated_modulo(a, b);
  return m != 0 && (m < 0) != (b < 0) ? m + b : m;
}
inline std::int64_t power(std::int64_t base, std::int64_t exponent) noexcept {
  if (exponent < 0) return base == 1 ? 1 : base == -1 ? (exponent % 2 ? -1 : 1) : 0;
  std::uint64_t r = 1, b = unwrap(base);
  for (; exponent > 0; exponent >>= 1, b *= b) {
    if (exponent & 1) r *= b;
  }
  return wrap(r);
}

}  // namespace detail

inline constexpr BinaryFunction binary_functions[] = {
    {"Add", [](double a, double b) { return a + b; },
     [](std::int64_t a, std::int64_t b) { return detail::wrap(detail::unwrap(a) + detail::unwrap(b)); },
     [](std::uint64_t a, std::uint64_t b) { return a + b; }, nullptr, false, kernel::Binary::add},
    {"Sub", [](double a, double b) { return a - b; },
     [](std::int64_t a, std::int64_t b) { return detail::wrap(detail::unwrap(a) - detail::unwrap(b)); },
     [](std::uint64_t a, std::uint64_t b) { return a - b; }, nullptr, false, kernel::Binary::sub},
    {"Mul", [](double a, double b) { return a * b; },
     [](std::int64_t a, std::int64_t b) { return detail::wrap(detail::unwrap(a) * detail::unwrap(b)); },
     [](std::uint64_t a, std::uint64_t b) { return a * b; }, nullptr, false, kernel::Binary::mul},
    {"Div", [](double a, double b) { return a / b; }, &detail::divide,
     [](std::uint64_t a, std::uint64_t b) { return b == 0 ? 0 : a / b; }, nullptr, false, kernel::Binary::div},
    {"Max", [](double a, double b) { return a != a  ? a
                                            : a > b ? a
                                                    : b; },
     [](std::int64_t a, std::int64_t b) { return std::max(a, b); },
     [](std::uint64_t a, std::uint64_t b) { return std::max(a, b); }, nullptr, false, kernel::Binary::max},
    {"Min", [](double a, double b) { return a != a  ? a
                                            : a < b ? a
                                                    : b; },
     [](std::int64_t a, std::int64_t b) { return std::min(a, b); },
     [](std::uint64_t a, std::uint64_t b) { return std::min(a, b); }, nullptr, false, kernel::Binary::min},
    {"Pow", [](double a, double b) { return std::pow(a, b); }, &detail::power,
     [](std::uint64_t a, std::uint64_t b) { return detail::unwrap(detail::power(detail::wrap(a), detail::wrap(b))); }},
    {"Fmod", [](double a, double b) { return std::fmod(a, b); }, &detail::truncated_modulo,
     [](std::uint64_t a, std::uint64_t b) { return b == 0 ? 0 : a % b; }},
    {"Mod", nullptr, &detail::floored_modulo, [](std::uint64_t a, std::uint64_t b) { return b == 0 ? 0 : a % b; }},
    {"PRelu", [](double a, double b) { return a < 0 ? a * b : a; },
     [](std::int64_t a, std::int64_t b) { return a < 0 ? detail::wrap(detail::unwrap(a) * detail::unwrap(b)) : a; },
     [](std::uint64_t a, std::uint64_t) { return a; }, nullptr, false, kernel::Binary::prelu},
    {"ShiftLeft", nullptr, nullptr, [](std::uint64_t a, std::uint64_t b) { return b > 63 ? 0 : a << b; }},
    {"ShiftRight", nullptr, nullptr, [](std::uint64_t a, std::uint64_t b) { return b > 63 ? 0 : a >> b; }},
    {"Equal", [](double a, double b) { return a == b ? 1.0 : 0.0; },
     [](std::int64_t a, std::int64_t b) { return std::int64_t{a == b}; },
     [](std::uint64_t a, std::uint64_t b) { return std::uint64_t{a == b}; }, [](bool a, bool b) { return a == b; },
     true},
    {"Less", [](double a, double b) { return a < b ? 1.0 : 0.0; },
     [](std::int64_t a, std::int64_t b) { return std::int64_t{a < b}; },
     [](std::uint64_t a, std::uint64_t b) { return std::uint64_t{a < b}; }, nullptr, true},
    {"LessOrEqual", [](double a, double b) { return a <= b ? 1.0 : 0.0; },
     [](std::int64_t a, std::int64_t b) { return std::int64_t{a <= b}; },
     [](std::uint64_t a, std::uint64_t b) { return std::uint64_t{a <= b}; }, nullptr, true},
    {"Greater", [](double a, double b) { return a > b ? 1.0 : 0.0; },
     [](std::int64_t a, std::int64_t b) { return std::int64_t{a > b}; },
     [](std::uint64_t a, std::uint64_t b) { return std::uint64_t{a > b}; }, nullptr, true},
    {"GreaterOrEqual", [](double a, double b) { return a >= b ? 1.0 : 0.0; },
     [](std::int64_t a, std::int64_t b) { return std::int64_t{a >= b}; },
     [](std::uint64_t a, std::uint64_t b) { return std::uint64_t{a >= b}; }, nullptr, true},
    {"And", nullptr, nullptr, nullptr, [](bool a, bool b) { return a && b; }, true, kernel::Binary::count, 0},
    {"Or", nullptr, nullptr, nullptr, [](bool a, bool b) { return a || b; }, true, kernel::Binary::count, 0},
    {"Xor", nullptr, nullptr, nullptr, [](bool a, bool b) { return a != b; }, true, kernel::Binary::count, 0},
};

inline const BinaryFunction* find_binary(std::string_view name) noexcept {
  const auto* i = std::ranges::find(binary_functions, name, &BinaryFunction::name);
  return i == std::end(binary_functions) ? nullptr : i;
}

/// out = f(a, b) with broadcasting. The caller has checked the types with `check_binary`.
inline void binary_forward(const BinaryFunction& f, const TensorView& a, const TensorView& b, const TensorView& out,
                           const kernel::Kernels& kernels) noexcept {
  const BroadcastWalk walk(out.shape, {&a.shape, &b.shape});
  const Index sa = walk.step[0], sb = walk.step[1];
  const bool is_unsigned = a.type == DType::u8 || a.type == DType::u16 || a.type == DType::u32 || a.type == DType::u64;
  walk.each([&](Index at, const auto& offset) {
    const Index pa = offset[0], pb = offset[1];
    if (a.type == DType::f32 && b.type == DType::f32 && f.kernel != kernel::Binary::count) {
      kernels.binary(f.kernel, a.f32() + pa, sa, b.f32() + pb, sb, out.as<float>() + at, walk.inner);
    } else if (a.type == DType::boolean) {
      for (Index i = 0; i < walk.inner; ++i) {
        put_integer(out, at + i, f.truth(integer_at(a, pa + i * sa) != 0, integer_at(b, pb + i * sb) != 0));
      }
    } else if (is_float(a.type) || is_float(b.type)) {
      for (Index i = 0; i < walk.inner; ++i) {
        put_real(out, at + i, f.real(real_at(a, pa + i * sa), real_at(b, pb + i * sb)));
      }
    } else if (is_unsigned) {
      for (Index i = 0; i < walk.inner; ++i) {
        put_integer(out, at + i,
                    detail::wrap(f.natural(detail::unwrap(integer_at(a, pa + i * sa)),
                                           detail::unwrap(integer_at(b, pb + i * sb)))));
      }
    } else {
      for (Index i = 0; i < walk.inner; ++i) {
        put_integer(out, at + i, f.integer(integer_at(a, pa + i * sa), integer_at(b, pb + i * sb)));
      }
    }
  });
}

/// Raises an Error unless `f` takes the types; returns the result's type.
inline DType check_binary(const BinaryFunction& f, DType a, DType b) {
  const bool mixed = f.name == "Pow";
  OFFRAMP_REQUIRE(a == b || mixed,
                  "operands have types " + std::string(name_of(a)) + " and " + std::string(name_of(b)));
  const bool fits = a == DType::boolean                                                       ? f.truth && b == a
                    : is_float(a) || is_float(b)                                              ? f.real != nullptr
                    : a == DType::u8 || a == DType::u16 || a == DType::u32 || a == DType::u64 ? f.natural != nullptr
                                                                                              : f.integer != nullptr;
  OFFRAMP_REQUIRE(fits, "cannot take " + std::string(name_of(a)));
  return f.is_test ? DType::boolean : a;
}

/// Any operator of binary_functions.
class BinaryOperation final : public Operation {
 public:
  BinaryOperation(const Node& node, Index opset) : f_(*find_binary(row(node))) {
    if (opset < 7) {  // broadcasting was asked for, and could start at any axis
      legacy_ = true;
      if (node.op == "PRelu") axis_ = 1;
      if (node.find("axis")) axis_ = node.integer("axis", 0);
    }
    unidirectional_ = node.op == "PRelu";
  }

  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView &a = required_input(in, 0), &b = required_input(in, 1);
    const Shape shape = broadcast_shape(a.shape, aligned(a.shape, b.shape));
    OFFRAMP_REQUIRE(!unidirectional_ || shape == a.shape,
                    "slope " + b.shape.text() + " does not broadcast to " + a.shape.text());
    set_output(out[0], check_binary(f_, a.type, b.type), shape);
  }
  Cost cost(std::span<const TensorView>, std::span<const TensorView> out) const noexcept override {
    return Cost::plain(out[0].count() * f_.flops);
  }
  bool in_place(std::size_t) const noexcept override { return !f_.is_test; }
  bool forward(const OperationRun& run) const noexcept override {
    TensorView b = run.in[1];
    b.shape = aligned(run.in[0].shape, b.shape);
    binary_forward(f_, run.in[0], b, run.out[0], run.kernels);
    return true;
  }

 private:
  static std::string_view row(const Node& node) {
    if (node.op == "Mod" && node.integer("fmod", 0) != 0) return "Fmod";
    if (node.op == "BitShift") {
      const std::string direction = node.text("direction", "");
      OFFRAMP_REQUIRE(direction == "LEFT" || direction == "RIGHT",
                      "direction '" + direction + "' is neither LEFT nor RIGHT");
      return direction == "LEFT" ? "ShiftLeft" : "ShiftRight";
    }
    return node.op;
  }
  // The second operand's shape with the trailing ones that make numpy's rule do what opset 6 meant.
  Shape aligned(const Shape& a, const Shape& b) const noexcept {
    if (!legacy_ || !axis_ || *axis_ < 0) return b;
    Shape s = b;
    for (Index i = *axis_ + b.rank(); i < a.rank() && s.rank() < Shape::max_rank; ++i) s.push_back(1);
    return s;
  }

  const BinaryFunction& f_;
  bool legacy_ = false, unidirectional_ = false;
  std::optional<Index> axis_;
};

/// Sum, Max, Min and Mean of any number of operands.
class VariadicOperation final : public Operation {
 public:
  VariadicOperation(const Node& node, Index)
      : f_(*find_binary(node.op == "Sum" || node.op == "Mean" ? "Add" : std::string_view(node.op))),
        mean_(node.op == "Mean") {}

  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    Shape shape = required_input(in, 0).shape;
    for (std::size_t i = 1; i < in.size(); ++i) {
      check_binary(f_, in[0].type, required_input(in, i).type);
      shape = broadcast_shape(shape, in[i].shape);
    }
    OFFRAMP_REQUIRE(!mean_ || is_float(in[0].type), "cannot take " + std::string(name_of(in[0].type)));
    set_output(out[0], in[0].type, shape);
  }
  Cost cost(std::span<const TensorView> in, std::span<const TensorView> out) const noexcept override {
    return Cost::plain(out[0].count() * (static_cast<Index>(in.size()) - 1 + (mean_ ? 1 : 0)));
  }
  bool in_place(std::size_t i) const noexcept override { return i == 0; }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView& y = run.out[0];
    if (run.in.size() == 1) {
      if (y.data != run.in[0].data && y.count() > 0) std::memcpy(y.data, run.in[0].data, y.bytes());
    } else {
      binary_forward(f_, run.in[0], run.in[1], y, run.kernels);
      for (std::size_t i = 2; i < run.in.size(); ++i) binary_forward(f_, y, run.in[i], y, run.kernels);
    }
    if (mean_) {
      const auto scale = 1 / static_cast<double>(run.in.size());
      for (Index i = 0; i < y.count(); ++i) put_real(y, i, real_at(y, i) * scale);
    }
    return true;
  }

 private:
  const BinaryFunction& f_;
  bool mean_;
};

/// Clip: bounds as attributes (opset 6) or as inputs (11 and later).
class ClipOperation final : public Operation {
 public:
  ClipOperation(const Node& node, Index)
      : low_(static_cast<double>(node.real("min", -std::numeric_limits<float>::infinity()))),
        high_(static_cast<double>(node.real("max", std::numeric_limits<float>::infinity()))) {}

  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView& x = required_input(in, 0);
    for (const std::size_t i : {1u, 2u}) {
      const TensorView* bound = optional_input(in, i);
      OFFRAMP_REQUIRE(!bound || (bound->count() == 1 && bound->type == x.type),
                      "a bound must be one element of the input's type");
    }
    set_output(out[0], x.type, x.shape);
  }
  Cost cost(std::span<const TensorView> in, std::span<const TensorView>) const noexcept override {
    return Cost::plain(in[0].count());
  }
  bool in_place(std::size_t i) const noexcept override { return i == 0; }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &y = run.out[0];
    const TensorView *low = optional_input(run.in, 1), *high = optional_input(run.in, 2);
    if (is_float(x.type)) {
      const double a = low ? real_at(*low, 0) : low_, b = high ? real_at(*high, 0) : high_;
      if (x.type == DType::f32) {
        run.kernels.unary(kernel::Unary::clip, x.f32(), y.as<float>(), x.count(), static_cast<float>(a),
                          static_cast<float>(b));
        return true;
      }
      for (Index i = 0; i < x.count(); ++i) put_real(y, i, std::min(std::max(real_at(x, i), a), b));
    } else {
      for (Index i = 0; i < x.count(); ++i) {
        std::int64_t v = integer_at(x, i);
        if (low) v = std::max(v, integer_at(*low, 0));
        if (high) v = std::min(v, integer_at(*high, 0));
        put_integer(y, i, v);
      }
    }
    return true;
  }

 private:
  double low_, high_;
};

/// Tests of one element: Not, IsNaN, IsInf.
class TestOperation final : public Operation {
 public:
  TestOperation(const Node& node, Index)
      : op_(node.op),
        negative_(node.integer("detect_negative", 1) != 0),
        positive_(node.integer("detect_positive", 1) != 0) {}

  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView& x = required_input(in, 0);
    OFFRAMP_REQUIRE(op_ == "Not" ? x.type == DType::boolean : is_float(x.type),
                    "cannot take " + std::string(name_of(x.type)));
    set_output(out[0], DType::boolean, x.shape);
  }
  bool forward(const OperationRun& run) const noexcept override {
    for (Index i = 0; i < run.in[0].count(); ++i) {
      const double v = real_at(run.in[0], i);
      const bool yes = op_ == "Not"     ? v == 0
                       : op_ == "IsNaN" ? v != v
                                        : std::isinf(v) && (v > 0 ? positive_ : negative_);
      put_integer(run.out[0], i, yes);
    }
    return true;
  }

 private:
  std::string op_;
  bool negative_, positive_;
};

/// Cast and CastLike.
class CastOperation final : public Operation {
 public:
  CastOperation(const Node& node, Index) : like_(node.op == "CastLike") {
    if (like_) return;
    to_ = static_cast<DType>(std::clamp<Index>(node.integer("to", 0), 0, 255));
    OFFRAMP_REQUIRE(size_of(to_) > 0, "cannot cast to type " + std::to_string(node.integer("to", 0)));
  }

  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    set_output(out[0], like_ ? required_input(in, 1).type : to_, required_input(in, 0).shape);
  }
  InputUse use(std::size_t i) const noexcept override { return i == 0 ? InputUse::data : InputUse::shape; }
  bool is_view(std::span<const TensorView> in, std::span<const TensorView> out) const noexcept override {
    return in[0].type == out[0].type;
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &y = run.out[0];
    for (Index i = 0; i < x.count(); ++i) {
      if (is_float(x.type) || y.type == DType::boolean) {
        put_real(y, i, real_at(x, i));
      } else if (x.type == DType::u64 && is_float(y.type)) {
        put_real(y, i, real_at(x, i));
      } else {
        put_integer(y, i, integer_at(x, i));
      }
    }
    return true;
  }

 private:
  bool like_;
  DType to_ = DType::none;
};

/// Where: elements of one tensor or another.
class WhereOperation final : public Operation {
 public:
  WhereOperation(const Node&, Index) {}

  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView &c = required_input(in, 0), &a = required_input(in, 1), &b = required_input(in, 2);
    OFFRAMP_REQUIRE(c.type == DType::boolean, "the condition must be bool, found " + std::string(name_of(c.type)));
    OFFRAMP_REQUIRE(a.type == b.type,
                    "operands have types " + std::string(name_of(a.type)) + " and " + std::string(name_of(b.type)));
    set_output(out[0], a.type, broadcast_shape(c.shape, broadcast_shape(a.shape, b.shape)));
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &c = run.in[0], &a = run.in[1], &b = run.in[2], &y = run.out[0];
    const BroadcastWalk walk(y.shape, {&c.shape, &a.shape, &b.shape});
    const std::size_t size = size_of(y.type);
    walk.each([&](Index at, const auto& offset) {
      for (Index i = 0; i < walk.inner; ++i) {
        const bool first = c.as<std::uint8_t>()[offset[0] + i * walk.step[0]] != 0;
        copy_elements(y.data, at + i, first ? a.data : b.data,
                      first ? offset[1] + i * walk.step[1] : offset[2] + i * walk.step[2], 1, size);
      }
    });
    return true;
  }
};

}  // namespace offramp

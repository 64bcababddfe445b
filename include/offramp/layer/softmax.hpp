/// @file softmax.hpp
/// Softmax, its logarithm, and Hardmax.
#pragma once

#include <cmath>
#include <limits>
#include <string>

#include "offramp/layer/element.hpp"
#include "offramp/layer/operation.hpp"

namespace offramp {

/// Softmax, LogSoftmax and Hardmax. Up to opset 12 all axes from `axis` on are one; later `axis` stands alone.
class SoftmaxOperation final : public Operation {
 public:
  SoftmaxOperation(const Node& node, Index opset)
      : op_(node.op), flatten_(opset < 13), axis_(node.integer("axis", opset < 13 ? 1 : -1)) {}

  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView& x = float_input(in, 0);
    const int rank = x.shape.rank();
    OFFRAMP_REQUIRE(axis_ == rank && flatten_ ? true : normalize_axis(axis_, rank) >= 0, "axis");
    set_output(out[0], x.type, x.shape);
  }
  Cost cost(std::span<const TensorView> in, std::span<const TensorView>) const noexcept override {
    return Cost::plain(5 * in[0].count());
  }
  Index executed(std::span<const TensorView> in, std::span<const TensorView>) const noexcept override {
    return 19 * in[0].count();
  }
  bool in_place(std::size_t) const noexcept override { return op_ == "Softmax"; }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &y = run.out[0];
    const int rank = x.shape.rank(), axis = static_cast<int>(from_front(axis_, rank));
    const Index outer = x.shape.count(0, axis), n = flatten_ ? x.shape.count(axis, rank) : x.shape[axis];
    const Index inner = flatten_ ? 1 : x.shape.count(axis + 1, rank);
    if (x.count() == 0) return true;
    if (op_ != "Hardmax" && inner == 1) {
      run.kernels.softmax(x.f32(), y.as<float>(), outer, n, op_ == "LogSoftmax");
      return true;
    }
    for (Index o = 0; o < outer; ++o) {
      for (Index i = 0; i < inner; ++i) {
        const float* in = x.f32() + o * n * inner + i;
        float* out = y.as<float>() + o * n * inner + i;
        Index best = 0;
        for (Index k = 1; k < n; ++k) best = in[k * inner] > in[best * inner] ? k : best;
        if (op_ == "Hardmax") {
          for (Index k = 0; k < n; ++k) out[k * inner] = k == best ? 1.0f : 0.0f;
          continue;
        }
        const double largest = static_cast<double>(in[best * inner]);
        double sum = 0;
        for (Index k = 0; k < n; ++k) sum += std::exp(static_cast<double>(in[k * inner]) - largest);
        for (Index k = 0; k < n; ++k) {
          const double v = static_cast<double>(in[k * inner]) - largest;
          out[k * inner] = static_cast<float>(op_ == "LogSoftmax" ? v - std::log(sum) : std::exp(v) / sum);
        }
      }
    }
    return true;
  }

 private:
  std::string op_;
  bool flatten_;
  Index axis_;
};

}  // namespace offramp

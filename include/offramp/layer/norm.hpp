/// @file norm.hpp
/// Normalisation: batch, instance, layer, mean-variance and local response.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "offramp/layer/element.hpp"
#include "offramp/layer/operation.hpp"

namespace offramp {

/// BatchNormalization; with training_mode the statistics are the batch's, and the running ones are further outputs.
class BatchNormOperation final : public Operation {
 public:
  BatchNormOperation(const Node& node, Index opset)
      : epsilon_(static_cast<double>(node.real("epsilon", 1e-5f))),
        momentum_(static_cast<double>(node.real("momentum", 0.9f))),
        training_(opset >= 14 && node.integer("training_mode", 0) != 0),
        channels_last_(node.integer("offramp.channels_last", 0) != 0) {
    OFFRAMP_REQUIRE(node.integer("spatial", 1) != 0, "statistics for every position (spatial = 0) are not supported");
  }
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView& x = required_input(in, 0);
    OFFRAMP_REQUIRE(is_float(x.type), "cannot take " + std::string(name_of(x.type)));
    require_rank(x, 2, Shape::max_rank, "input");
    const Index channels = x.shape[channel_axis(x.shape)];
    for (std::size_t i = 1; i < 5; ++i) {
      const TensorView& p = required_input(in, i);
      OFFRAMP_REQUIRE(is_float(p.type) && p.count() == channels, "input " + std::to_string(i) + ": expected " +
                                                                     std::to_string(channels) +
                                                                     " numbers, found shape " + p.shape.text());
    }
    set_output(out[0], x.type, x.shape);
    for (std::size_t i = 1; i < out.size(); ++i) set_output(out[i], in[i < 3 ? i + 2 : 3].type, Shape{channels});
  }
  Cost cost(std::span<const TensorView> in, std::span<const TensorView>) const noexcept override {
    return Cost::plain(2 * in[0].count());
  }
  bool in_place(std::size_t i) const noexcept override { return i == 0 && !training_; }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &y = run.out[0];
    const int axis = channel_axis(x.shape);
    const Index channels = x.shape[axis], outer = x.shape.count(0, axis),
                inner = x.shape.count(axis + 1, x.shape.rank());
    const Index n = outer * inner;
    for (Index c = 0; c < channels; ++c) {
      double mean = real_at(run.in[3], c), variance = real_at(run.in[4], c);
      const auto each = [&](auto&& f) {
        for (Index o = 0; o < outer; ++o) {
          for (Index i = 0; i < inner; ++i) f((o * channels + c) * inner + i);
        }
      };
      if (training_) {
        double sum = 0, squares = 0;
        each([&](Index i) { sum += real_at(x, i); });
        const double own_mean = n > 0 ? sum / static_cast<double>(n) : 0;
        each([&](Index i) { squares += (real_at(x, i) - own_mean) * (real_at(x, i) - own_mean); });
        const double own_variance = n > 0 ? squares / static_cast<double>(n) : 0;
        if (run.out.size() > 1 && run.out[1].data)
          put_real(run.out[1], c, mean * momentum_ + own_mean * (1 - momentum_));
        if (run.out.size() > 2 && run.out[2].data)
          put_real(run.out[2], c, variance * momentum_ + own_variance * (1 - momentum_));
        mean = own_mean;
        variance = own_variance;
      }
      const double scale = real_at(run.in[1], c) / std::sqrt(variance + epsilon_);
      const double shift = real_at(run.in[2], c) - mean * scale;
      each([&](Index i) { put_real(y, i, real_at(x, i) * scale + shift); });
    }
    return true;
  }
  double epsilon() const noexcept { return epsilon_; }

 private:
  int channel_axis(const Shape& s) const noexcept { return channels_last_ ? s.rank() - 1 : 1; }
  double epsilon_, momentum_;
  bool training_, channels_last_;
};

/// InstanceNormalization.
class InstanceNormOperation final : public Operation {
 public:
  InstanceNormOperation(const Node& node, Index) : epsilon_(node.real("epsilon", 1e-5f)) {}
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView& x = float_input(in, 0);
    require_rank(x, 3, Shape::max_rank, "input");
    for (const std::size_t i : {1u, 2u})
      OFFRAMP_REQUIRE(float_input(in, i).count() == x.shape[1], "scale or bias does not fit input " + x.shape.text());
    set_output(out[0], x.type, x.shape);
  }
  Cost cost(std::span<const TensorView> in, std::span<const TensorView>) const noexcept override {
    return Cost::plain(6 * in[0].count());
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView& x = run.in[0];
    const Index channels = x.shape[1], pixels = x.shape.count(2, x.shape.rank());
    for (Index i = 0; i < x.shape[0] * channels && pixels > 0; ++i) {
      float* out = run.out[0].as<float>() + i * pixels;
      run.kernels.layer_norm(x.f32() + i * pixels, out, 1, pixels, epsilon_, nullptr, nullptr);
      const float scale = run.in[1].f32()[i % channels], shift = run.in[2].f32()[i % channels];
      for (Index p = 0; p < pixels; ++p) out[p] = out[p] * scale + shift;
    }
    return true;
  }

 private:
  float epsilon_;
};

/// LayerNormalization (opset 17, and what the fusion pass recognises in its exported form).
class LayerNormOperation final : public Operation {
 public:
  LayerNormOperation(const Node& node, Index)
      : axis_(node.integer("axis", -1)), epsilon_(node.real("epsilon", 1e-5f)) {}
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView& x = float_input(in, 0);
    const int axis = normalize_axis(axis_, x.shape.rank());
    const Index n = x.shape.count(axis, x.shape.rank());
    OFFRAMP_REQUIRE(n > 0, "nothing to normalise in " + x.shape.text());
    OFFRAMP_REQUIRE(float_input(in, 1).count() == n,
                    "scale " + in[1].shape.text() + " does not fit input " + x.shape.text());
    if (optional_input(in, 2))
      OFFRAMP_REQUIRE(float_input(in, 2).count() == n,
                      "bias " + in[2].shape.text() + " does not fit input " + x.shape.text());
    set_output(out[0], x.type, x.shape);
    Shape s = x.shape;
    for (int i = axis; i < s.rank(); ++i) s[i] = 1;
    for (std::size_t i = 1; i < out.size(); ++i) set_output(out[i], DType::f32, s);
  }
  Cost cost(std::span<const TensorView> in, std::span<const TensorView>) const noexcept override {
    return Cost::plain(8 * in[0].count());
  }
  bool in_place(std::size_t i) const noexcept override { return i == 0; }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView& x = run.in[0];
    const TensorView* bias = optional_input(run.in, 2);
    const int axis = static_cast<int>(from_front(axis_, x.shape.rank()));
    const Index rows = x.shape.count(0, axis), n = x.shape.count(axis, x.shape.rank());
    const bool statistics = run.out.size() > 1 && (run.out[1].data || (run.out.size() > 2 && run.out[2].data));
    for (Index r = 0; statistics && r < rows; ++r) {
      double sum = 0, squares = 0;
      for (Index i = 0; i < n; ++i) sum += real_at(x, r * n + i);
      const double mean = sum / static_cast<double>(n);
      for (Index i = 0; i < n; ++i) squares += (real_at(x, r * n + i) - mean) * (real_at(x, r * n + i) - mean);
      if (run.out[1].data) put_real(run.out[1], r, mean);
      if (run.out.size() > 2 && run.out[2].data)
        put_real(run.out[2], r, 1 / std::sqrt(squares / static_cast<double>(n) + static_cast<double>(epsilon_)));
    }
    run.kernels.layer_norm(x.f32(), run.out[0].as<float>(), rows, n, epsilon_, run.in[1].f32(),
                           bias ? bias->f32() : nullptr);
    return true;
  }

 private:
  Index axis_;
  float epsilon_;
};

/// LRN, over a window of channels.
class LrnOperation final : public Operation {
 public:
  LrnOperation(const Node& node, Index)
      : size_(node.integer("size", 0)),
        alpha_(static_cast<double>(node.real("alpha", 1e-4f))),
        beta_(static_cast<double>(node.real("beta", 0.75f))),
        bias_(static_cast<double>(node.real("bias", 1.0f))) {
    OFFRAMP_REQUIRE(size_ > 0, "size must be positive, found " + std::to_string(size_));
  }
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView& x = float_input(in, 0);
    require_rank(x, 3, Shape::max_rank, "input");
    set_output(out[0], x.type, x.shape);
  }
  Cost cost(std::span<const TensorView> in, std::span<const TensorView>) const noexcept override {
    return Cost::plain(in[0].count() * (2 * std::min(size_, in[0].shape[1]) + 4));
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView& x = run.in[0];
    const Index channels = x.shape[1], pixels = x.shape.count(2, x.shape.rank());
    for (Index i = 0; i < x.shape[0]; ++i) {
      for (Index c = 0; c < channels; ++c) {
        const Index first = std::max<Index>(0, c - (size_ - 1) / 2), last = std::min(channels - 1, c + size_ / 2);
        for (Index p = 0; p < pixels; ++p) {
          double squares = 0;
          for (Index k = first; k <= last; ++k) squares += std::pow(real_at(x, (i * channels + k) * pixels + p), 2);
          const Index at = (i * channels + c) * pixels + p;
          put_real(run.out[0], at,
                   real_at(x, at) / std::pow(bias_ + alpha_ / static_cast<double>(size_) * squares, beta_));
        }
      }
    }
    return true;
  }

 private:
  Index size_;
  double alpha_, beta_, bias_;
};

}  // namespace offramp

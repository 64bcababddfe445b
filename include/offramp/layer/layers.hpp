/// @file layers.hpp
/// Layers for networks written as C++ types. They stand on the same plans and kernels as the run-time graph.
#pragma once

#include <algorithm>
#include <cstring>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "offramp/kernel/pack.hpp"
#include "offramp/layer/conv.hpp"
#include "offramp/layer/dense.hpp"
#include "offramp/layer/layer.hpp"

namespace offramp {

namespace detail {

/// `In` has as many elements as a layer wants, or is not known to the compiler.
template <class In, Index Wanted>
concept CountFits = !In::is_static || Wanted == dynamic || (In::is_static && In::count() == Wanted);

inline Node window_node(Index kernel, Index stride, Index pad) {
  Node n;
  n.set("kernel_shape", std::vector<Index>{kernel, kernel});
  n.set("strides", std::vector<Index>{stride, stride});
  n.set("pads", std::vector<Index>{pad, pad, pad, pad});
  return n;
}

}  // namespace detail

/// Fully connected: y = W x + b. Sizes may be `dynamic`; then the weights' own sizes count.
template <Index In = dynamic, Index Out = dynamic>
class Dense {
 public:
  template <class I>
  requires detail::CountFits<I, In>
  using Output = std::conditional_t<Out == dynamic, UnknownExtents, Extents<Out>>;

  /// `weights` is [out][in], as PyTorch's Linear and ONNX's Gemm with transB have it; `bias` is [out] or empty.
  Dense(std::vector<float> weights, std::vector<float> bias) requires(In != dynamic && Out != dynamic)
      : Dense(In, Out, std::move(weights), std::move(bias)) {}
  Dense(Index in, Index out, std::vector<float> weights, std::vector<float> bias)
      : in_(in), out_(out), weights_(std::move(weights)), bias_(std::move(bias)) {
    OFFRAMP_REQUIRE((In == dynamic || In == in) && (Out == dynamic || Out == out),
                    "a dense layer's sizes contradict its type");
    OFFRAMP_REQUIRE(in > 0 && out > 0 && static_cast<Index>(weights_.size()) == checked_product(in, out),
                    "a dense layer from " + std::to_string(in) + " to " + std::to_string(out) + " was given " +
                        std::to_string(weights_.size()) + " weights");
    OFFRAMP_REQUIRE(bias_.empty() || static_cast<Index>(bias_.size()) == out,
                    "a dense layer's bias has the wrong size");
  }

  Shape bind(const Shape& in, const kernel::Kernels&) {
    OFFRAMP_REQUIRE(in.count() == in_,
                    "a dense layer expects " + std::to_string(in_) + " inputs, found shape " + in.text());
    plan_ = DensePlan(in_, out_, weights_.data(), 1, in_, 1.0f, bias_.empty() ? nullptr : bias_.data(), FusedTail());
    return {out_};
  }
  Cost cost() const noexcept { return plan_.cost(1, false); }
  void forward(const float* in, float* out, Index batch, float*, const kernel::Kernels& k) const noexcept {
    plan_.forward(in, nullptr, out, batch, k);
  }

 private:
  Index in_, out_;
  std::vector<float> weights_, bias_;
  DensePlan plan_;
};

/// Square 2-D convolution.
template <Index In, Index Out, Index Kernel, Index Stride = 1, Index Pad = (Kernel - 1) / 2>
class Conv2d {
 public:
  template <class I>
  requires(!I::is_static || (I::rank == 3 && I::template size<0> == In)) using Output =
      std::conditional_t<I::is_static,
                         Extents<Out, (I::template size<1> + 2 * Pad - Kernel) / Stride + 1,
                                 (I::template size<2> + 2 * Pad - Kernel) / Stride + 1>,
                         UnknownExtents>;

  /// `weights` is [out][in][kernel][kernel]; `bias` is [out] or empty.
  Conv2d(std::vector<float> weights, std::vector<float> bias) : weights_(std::move(weights)), bias_(std::move(bias)) {
    OFFRAMP_REQUIRE(static_cast<Index>(weights_.size()) == Out * In * Kernel * Kernel,
                    "a convolution was given " + std::to_string(weights_.size()) + " weights, expected " +
                        std::to_string(Out * In * Kernel * Kernel));
    OFFRAMP_REQUIRE(bias_.empty() || static_cast<Index>(bias_.size()) == Out,
                    "a convolution's bias has the wrong size");
  }

  Shape bind(const Shape& in, const kernel::Kernels& k) {
    OFFRAMP_REQUIRE(in.rank() == 3 && in[0] == In,
                    "a convolution of " + std::to_string(In) + " channels was given shape " + in.text());
    const Shape batched{1, in[0], in[1], in[2]};
    const Window w = WindowAttributes(detail::window_node(Kernel, Stride, Pad)).resolve(batched, false);
    plan_ = ConvPlan(w, In, Out, 1, weights_.data(), bias_.empty() ? nullptr : bias_.data(), FusedTail(),
                     PrepareOptions{k});
    return {Out, w.out[1], w.out[2]};
  }
  Cost cost() const noexcept { return plan_.cost(1, false); }
  Index scratch(Index batch) const noexcept { return static_cast<Index>(plan_.scratch_bytes(batch) / sizeof(float)); }
  void forward(const float* in, float* out, Index batch, float* scratch, const kernel::Kernels& k) const noexcept {
    plan_.forward(in, nullptr, out, batch, reinterpret_cast<std::byte*>(scratch), k);
  }

 private:
  std::vector<float> weights_, bias_;
  ConvPlan plan_;
};

/// An activation with a vector kernel.
template <kernel::Unary F>
class Activation {
 public:
  template <class In>
  using Output = In;

  explicit Activation(float alpha = 0, float beta = 0) : alpha_(alpha), beta_(beta) {}
  Shape bind(const Shape& in, const kernel::Kernels&) {
    count_ = in.count();
    return in;
  }
  Cost cost() const noexcept { return Cost::plain(count_); }
  void forward(const float* in, float* out, Index batch, float*, const kernel::Kernels& k) const noexcept {
    k.unary(F, in, out, batch * count_, alpha_, beta_);
  }

 private:
  float alpha_, beta_;
  Index count_ = 0;
};

using Relu = Activation<kernel::Unary::relu>;
using Sigmoid = Activation<kernel::Unary::sigmoid>;
using Tanh = Activation<kernel::Unary::tanh>;
using Gelu = Activation<kernel::Unary::gelu>;
using Silu = Activation<kernel::Unary::silu>;

/// Maximum or average over square windows.
template <bool Maximum, Index Kernel, Index Stride = Kernel>
class Pooling2d {
 public:
  template <class I>
  requires(!I::is_static || I::rank == 3) using Output =
      std::conditional_t<I::is_static,
                         Extents<I::template size<0>, (I::template size<1> - Kernel) / Stride + 1,
                                 (I::template size<2> - Kernel) / Stride + 1>,
                         UnknownExtents>;

  Shape bind(const Shape& in, const kernel::Kernels&) {
    OFFRAMP_REQUIRE(in.rank() == 3, "a pooling layer was given shape " + in.text());
    const Window w = WindowAttributes(detail::window_node(Kernel, Stride, 0)).resolve({1, in[0], in[1], in[2]}, false);
    p_.maximum = Maximum;
    p_.channels = in[0], p_.in_h = in[1], p_.in_w = in[2], p_.out_h = w.out[1], p_.out_w = w.out[2];
    p_.kernel_h = p_.kernel_w = Kernel;
    p_.stride_h = p_.stride_w = Stride;
    return {in[0], w.out[1], w.out[2]};
  }
  Cost cost() const noexcept {
    return Cost::plain(p_.channels * p_.out_h * p_.out_w * (Kernel * Kernel - (Maximum ? 1 : 0)));
  }
  void forward(const float* in, float* out, Index batch, float*, const kernel::Kernels& k) const noexcept {
    for (Index i = 0; i < batch; ++i) {
      kernel::Pool2d p = p_;
      p.in = in + i * p.in_h * p.in_w * p.channels;
      p.out = out + i * p.out_h * p.out_w * p.channels;
      k.pool2d(p);
    }
  }

 private:
  kernel::Pool2d p_;
};

template <Index Kernel, Index Stride = Kernel>
using MaxPool2d = Pooling2d<true, Kernel, Stride>;
template <Index Kernel, Index Stride = Kernel>
using AveragePool2d = Pooling2d<false, Kernel, Stride>;

/// The mean over height and width: one number a channel.
class GlobalAveragePool {
 public:
  template <class I>
  requires(!I::is_static ||
           I::rank == 3) using Output = std::conditional_t<I::is_static, Extents<I::template size<0>>, UnknownExtents>;

  Shape bind(const Shape& in, const kernel::Kernels&) {
    OFFRAMP_REQUIRE(in.rank() == 3, "a pooling layer was given shape " + in.text());
    channels_ = in[0];
    pixels_ = in[1] * in[2];
    return {channels_};
  }
  Cost cost() const noexcept { return Cost::plain(channels_ * pixels_); }
  void forward(const float* in, float* out, Index batch, float*, const kernel::Kernels& k) const noexcept {
    for (Index i = 0; i < batch; ++i)
      k.sum_rows(in + i * pixels_ * channels_, out + i * channels_, pixels_, channels_,
                 1 / static_cast<float>(pixels_));
  }

 private:
  Index channels_ = 0, pixels_ = 0;
};

/// All elements on one axis, in the order channel, row, column that trained weights expect.
class Flatten {
 public:
  template <class I>
  using Output = std::conditional_t<I::is_static, Extents<[] {
                                      if constexpr (I::is_static) {
                                        return I::count();
                                      } else {
                                        return Index{0};
                                      }
                                    }()>,
                                    UnknownExtents>;

  Shape bind(const Shape& in, const kernel::Kernels&) {
    channels_ = in.rank() > 1 ? in[0] : in.count();
    pixels_ = in.count() / std::max<Index>(1, channels_);
    return {in.count()};
  }
  void forward(const float* in, float* out, Index batch, float*, const kernel::Kernels&) const noexcept {
    for (Index i = 0; i < batch; ++i)
      kernel::transpose(in + i * pixels_ * channels_, pixels_, channels_, out + i * pixels_ * channels_);
  }

 private:
  Index channels_ = 0, pixels_ = 0;
};

/// Layers one after the other.
template <Layer... Layers>
class Chain {
 public:
  template <class In, class... Rest>
  struct Fold {
    using type = In;
  };
  template <class In, class First, class... Rest>
  struct Fold<In, First, Rest...> {
    using type = typename Fold<LayerOutput<First, In>, Rest...>::type;
  };
  template <class In>
  using Output = typename Fold<In, Layers...>::type;

  explicit Chain(Layers... layers) : layers_(std::move(layers)...) {}

  Shape bind(const Shape& in, const kernel::Kernels& k) {
    Shape s = in;
    between_ = 0;
    std::apply([&](auto&... l) { ((s = l.bind(s, k), between_ = std::max(between_, s.count())), ...); }, layers_);
    return s;
  }
  Cost cost() const noexcept {
    return std::apply([](const auto&... l) { return (Cost{} + ... + layer_cost(l)); }, layers_);
  }
  Index scratch(Index batch) const noexcept {
    const Index own = std::apply(
        [&](const auto&... l) {
          return std::max({Index{0}, layer_scratch(l, batch)...});
        },
        layers_);
    return 2 * room(batch) + own;
  }
  void forward(const float* in, float* out, Index batch, float* scratch, const kernel::Kernels& k) const noexcept {
    if constexpr (sizeof...(Layers) > 0) {
      run<0>(in, out, batch, scratch, scratch + room(batch), scratch + 2 * room(batch), k);
    }
  }

 private:
  Index room(Index batch) const noexcept { return (batch * between_ + 15) / 16 * 16; }

  template <std::size_t I>
  void run(const float* in, float* out, Index batch, float* here, float* there, float* scratch,
           const kernel::Kernels& k) const noexcept {
    const auto& layer = std::get<I>(layers_);
    if constexpr (I + 1 == sizeof...(Layers)) {
      layer.forward(in, out, batch, scratch, k);
    } else {
      layer.forward(in, here, batch, scratch, k);
      run<I + 1>(here, out, batch, there, here, scratch, k);
    }
  }

  std::tuple<Layers...> layers_;
  Index between_ = 0;
};

/// The input handed on: a residual block's usual shortcut.
class Identity {
 public:
  template <class In>
  using Output = In;
  Shape bind(const Shape& in, const kernel::Kernels&) {
    count_ = in.count();
    return in;
  }
  void forward(const float* in, float* out, Index batch, float*, const kernel::Kernels&) const noexcept {
    std::memcpy(out, in, static_cast<std::size_t>(batch * count_) * sizeof(float));
  }

 private:
  Index count_ = 0;
};

/// body(x) + shortcut(x).
template <Layer Body, Layer Shortcut = Identity>
class Residual {
 public:
  template <class In>
  requires std::same_as<LayerOutput<Body, In>, LayerOutput<Shortcut, In>>
  using Output = LayerOutput<Body, In>;

  explicit Residual(Body body, Shortcut shortcut = Shortcut())
      : body_(std::move(body)), shortcut_(std::move(shortcut)) {}

  Shape bind(const Shape& in, const kernel::Kernels& k) {
    const Shape a = body_.bind(in, k), b = shortcut_.bind(in, k);
    OFFRAMP_REQUIRE(a == b, "a residual block adds shapes " + a.text() + " and " + b.text());
    count_ = a.count();
    return a;
  }
  Cost cost() const noexcept { return layer_cost(body_) + layer_cost(shortcut_) + Cost::plain(count_); }
  Index scratch(Index batch) const noexcept {
    return room(batch) + std::max(layer_scratch(body_, batch), layer_scratch(shortcut_, batch));
  }
  void forward(const float* in, float* out, Index batch, float* scratch, const kernel::Kernels& k) const noexcept {
    float* rest = scratch + room(batch);
    body_.forward(in, out, batch, rest, k);
    if constexpr (std::same_as<Shortcut, Identity>) {
      k.binary(kernel::Binary::add, out, 1, in, 1, out, batch * count_);
    } else {
      shortcut_.forward(in, scratch, batch, rest, k);
      k.binary(kernel::Binary::add, out, 1, scratch, 1, out, batch * count_);
    }
  }

 private:
  Index room(Index batch) const noexcept {
    return std::same_as<Shortcut, Identity> ? 0 : (batch * count_ + 15) / 16 * 16;
  }
  Body body_;
  Shortcut shortcut_;
  Index count_ = 0;
};

/// Two ways over the same input, their channels side by side.
template <Layer A, Layer B>
class Branch {
 public:
  template <class In>
  using Output = UnknownExtents;

  Branch(A a, B b) : a_(std::move(a)), b_(std::move(b)) {}

  Shape bind(const Shape& in, const kernel::Kernels& k) {
    const Shape a = a_.bind(in, k), b = b_.bind(in, k);
    bool fits = a.rank() == b.rank();
    for (int i = 1; fits && i < a.rank(); ++i) fits = a[i] == b[i];
    OFFRAMP_REQUIRE(fits, "a branch joins shapes " + a.text() + " and " + b.text());
    channels_a_ = a[0], channels_b_ = b[0];
    pixels_ = a.count() / std::max<Index>(1, a[0]);
    Shape s = a;
    s[0] += b[0];
    return s;
  }
  Cost cost() const noexcept { return layer_cost(a_) + layer_cost(b_); }
  Index scratch(Index batch) const noexcept {
    return room(batch) + std::max(layer_scratch(a_, batch), layer_scratch(b_, batch));
  }
  void forward(const float* in, float* out, Index batch, float* scratch, const kernel::Kernels& k) const noexcept {
    float* rest = scratch + room(batch);
    const auto spread = [&](const auto& layer, Index channels, Index at) {
      layer.forward(in, scratch, batch, rest, k);
      for (Index i = 0; i < batch * pixels_; ++i)
        std::memcpy(out + i * (channels_a_ + channels_b_) + at, scratch + i * channels,
                    static_cast<std::size_t>(channels) * sizeof(float));
    };
    spread(a_, channels_a_, 0);
    spread(b_, channels_b_, channels_a_);
  }

 private:
  Index room(Index batch) const noexcept {
    return (batch * pixels_ * std::max(channels_a_, channels_b_) + 15) / 16 * 16;
  }
  A a_;
  B b_;
  Index channels_a_ = 0, channels_b_ = 0, pixels_ = 0;
};

}  // namespace offramp

/// @file layers.hpp
/// Layers of a Stream: they are given one sample after the other and may remember.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <string>
#include <vector>

#include "offramp/core/tensor.hpp"
#include "offramp/kernel/kernels.hpp"

namespace offramp::stream {

/// Floats that a vector of n takes between two layers: kernels read and write whole vectors.
constexpr Index padded(Index n) noexcept {
  return kernel::padded_columns(n);
}

/// A layer: sizes known to the compiler, what it remembers, and one step from `padded(inputs)` to `padded(outputs)`
/// floats; those beyond `outputs` are free. A user's own layer has all of it; the layers below leave `step` to the
/// kernels of the instruction set in use.
template <class L>
concept Layer = std::move_constructible<L> && std::default_initializable<typename L::State> && requires {
  { L::inputs } -> std::convertible_to<Index>;
  { L::outputs } -> std::convertible_to<Index>;
};

namespace detail {

inline void require_size(const std::vector<float>& v, Index wanted, const char* what) {
  OFFRAMP_REQUIRE(static_cast<Index>(v.size()) == wanted, std::string(what) + ": expected " + std::to_string(wanted) +
                                                              " numbers, found " + std::to_string(v.size()));
}

/// [gates * outputs][inputs] to [inputs][gates][padded outputs]; the first `halved` gates times 1/2.
inline Tensor pack_gates(const std::vector<float>& w, Index gates, Index outputs, Index inputs, Index halved = 0) {
  const Index wide = padded(outputs);
  Tensor t(DType::f32, {inputs, gates * wide});
  auto* to = static_cast<float*>(t.mutable_data());
  for (Index g = 0; g < gates; ++g)
    for (Index o = 0; o < outputs; ++o)
      for (Index i = 0; i < inputs; ++i)
        to[i * gates * wide + g * wide + o] =
            w[static_cast<std::size_t>((g * outputs + o) * inputs + i)] * (g < halved ? 0.5f : 1.0f);
  return t;
}
/// A bias of `outputs` numbers, or zeros where it is empty.
inline Tensor pack_bias(const std::vector<float>& bias, Index outputs, const char* what) {
  if (bias.empty()) return Tensor(DType::f32, {padded(outputs)});
  require_size(bias, outputs, what);
  return pack_gates(bias, 1, outputs, 1);
}

}  // namespace detail

/// y = f(W x + b).
template <Index In, Index Out, kernel::Unary F = kernel::Unary::identity>
class Dense {
 public:
  static constexpr Index inputs = In, outputs = Out;
  struct State {};

  /// `weights` is [Out][In], `bias` [Out] or empty.
  Dense(const std::vector<float>& weights, const std::vector<float>& bias)
      : bias_(detail::pack_bias(bias, Out, "a dense layer's bias")) {
    detail::require_size(weights, Out * In, "a dense layer's weights");
    // One output is a scalar product: its weights stand as the input does.
    weights_ = Out == 1 ? detail::pack_gates(weights, 1, In, 1) : detail::pack_gates(weights, 1, Out, In);
  }
  const float* weights() const noexcept { return weights_.view().f32(); }
  const float* bias() const noexcept { return bias_.view().f32(); }

 private:
  Tensor weights_, bias_;
};

/// Causal convolution over time: y[t] = f(b + sum over k of W[k] x[t - (Kernel - 1 - k) Dilation]); before the first
/// sample all is zero.
template <Index In, Index Out, Index Kernel, Index Dilation = 1, kernel::Unary F = kernel::Unary::identity>
class Conv1d {
  static_assert(Kernel > 0 && Dilation > 0);

 public:
  static constexpr Index inputs = In, outputs = Out, rows = (Kernel - 1) * Dilation + 1;
  /// The last `rows` inputs, the oldest at `next`.
  struct State {
    alignas(64) std::array<float, static_cast<std::size_t>(rows* padded(In))> past{};
    Index next = 0;
  };

  /// `weights` is [Out][In][Kernel], as PyTorch and ONNX have it; `bias` is [Out] or empty.
  Conv1d(const std::vector<float>& weights, const std::vector<float>& bias)
      : bias_(detail::pack_bias(bias, Out, "a convolution's bias")) {
    detail::require_size(weights, Out * In * Kernel, "a convolution's weights");
    std::vector<float> by_tap(weights.size());  // [Out][Kernel][In]
    for (Index o = 0; o < Out; ++o)
      for (Index i = 0; i < In; ++i)
        for (Index k = 0; k < Kernel; ++k)
          by_tap[static_cast<std::size_t>((o * Kernel + k) * In + i)] =
              weights[static_cast<std::size_t>((o * In + i) * Kernel + k)];
    weights_ = detail::pack_gates(by_tap, 1, Out, Kernel * In);
  }
  const float* weights() const noexcept { return weights_.view().f32(); }  ///< [Kernel][In][padded Out]
  const float* bias() const noexcept { return bias_.view().f32(); }

 private:
  Tensor weights_, bias_;
};

namespace detail {

/// What GRU and LSTM share: weights of input and state, packed by gate, and their biases. All gates but the last are
/// logistic, 1 / (1 + e^-x) = (1 + tanh(x / 2)) / 2: their weights and biases are halved, which is exact.
template <Index In, Index Hidden, Index Gates>
class Recurrent {
 public:
  static constexpr Index inputs = In, outputs = Hidden;

  const float* input_weights() const noexcept { return w_.view().f32(); }  ///< [In][Gates][padded Hidden]
  const float* state_weights() const noexcept { return r_.view().f32(); }
  const float* input_bias() const noexcept { return bias_.view().f32(); }  ///< [Gates][padded Hidden]
  const float* state_bias() const noexcept { return input_bias() + Gates * padded(Hidden); }

 protected:
  Recurrent(const std::vector<float>& w, const std::vector<float>& r, const std::vector<float>& bias)
      : bias_(DType::f32, {2, Gates * padded(Hidden)}) {
    require_size(w, Gates * Hidden * In, "a recurrent layer's input weights");
    require_size(r, Gates * Hidden * Hidden, "a recurrent layer's state weights");
    if (!bias.empty()) require_size(bias, 2 * Gates * Hidden, "a recurrent layer's bias");
    w_ = pack_gates(w, Gates, Hidden, In, Gates - 1);
    r_ = pack_gates(r, Gates, Hidden, Hidden, Gates - 1);
    auto* to = static_cast<float*>(bias_.mutable_data());
    for (Index i = 0; i < static_cast<Index>(bias.size()); ++i)
      to[i / Hidden * padded(Hidden) + i % Hidden] =
          bias[static_cast<std::size_t>(i)] * (i / Hidden % Gates < Gates - 1 ? 0.5f : 1.0f);
  }

 private:
  Tensor w_, r_, bias_;
};

}  // namespace detail

/// Gated recurrent unit (Cho et al. 2014), the reset gate applied after the state's product, as PyTorch, Keras and ONNX
/// with linear_before_reset = 1 have it: n = tanh(Wn x + bn + r (Rn h + cn)), h = (1 - z) n + z h.
template <Index In, Index Hidden>
class Gru : public detail::Recurrent<In, Hidden, 3> {
 public:
  struct State {
    alignas(64) std::array<float, static_cast<std::size_t>(padded(Hidden))> h{};
  };
  /// ONNX's order of gates, z r h: `w` [3 Hidden][In], `r` [3 Hidden][Hidden], `bias` [2][3 Hidden] or empty.
  Gru(const std::vector<float>& w, const std::vector<float>& r, const std::vector<float>& bias)
      : detail::Recurrent<In, Hidden, 3>(w, r, bias) {}
};

/// Long short-term memory (Hochreiter and Schmidhuber 1997) without peepholes.
template <Index In, Index Hidden>
class Lstm : public detail::Recurrent<In, Hidden, 4> {
 public:
  struct State {
    alignas(64) std::array<float, static_cast<std::size_t>(padded(Hidden))> h{};
    alignas(64) std::array<float, static_cast<std::size_t>(padded(Hidden))> c{};
  };
  /// ONNX's order of gates, i o f c: `w` [4 Hidden][In], `r` [4 Hidden][Hidden], `bias` [2][4 Hidden] or empty.
  Lstm(const std::vector<float>& w, const std::vector<float>& r, const std::vector<float>& bias)
      : detail::Recurrent<In, Hidden, 4>(w, r, bias) {}
};

}  // namespace offramp::stream

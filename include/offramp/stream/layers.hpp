/// @file layers.hpp
/// Layers of a Stream: they are given one sample after the other and may remember.
#pragma once

#include <algorithm>
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

/// Samples that go through the layers together where a stream is given many at once.
inline constexpr Index block = 8;

/// A layer: sizes known to the compiler, what it remembers, and one step from `padded(inputs)` to `padded(outputs)`
/// floats; those beyond `outputs` are free. A user's own layer has all of it; the layers below leave `step` to the
/// kernels of the instruction set in use.
template <class L>
concept Layer = std::move_constructible<L> && std::default_initializable<typename L::State> && requires {
  { L::inputs } -> std::convertible_to<Index>;
  { L::outputs } -> std::convertible_to<Index>;
};

/// A layer with a step of its own.
template <class L>
concept UserLayer = Layer<L> && requires(const L& l, typename L::State& s, const float* in, float* out) {
  l.step(s, in, out);
};

namespace detail {

inline void require_size(const std::vector<float>& v, Index wanted, const char* what) {
  OFFRAMP_REQUIRE(static_cast<Index>(v.size()) == wanted, std::string(what) + ": expected " + std::to_string(wanted) +
                                                              " numbers, found " + std::to_string(v.size()));
}

/// [outputs][inputs] to [inputs][padded outputs].
inline Tensor pack(const std::vector<float>& w, Index outputs, Index inputs) {
  const Index wide = padded(outputs);
  Tensor t(DType::f32, {inputs, wide});
  auto* to = static_cast<float*>(t.mutable_data());
  for (Index o = 0; o < outputs; ++o)
    for (Index i = 0; i < inputs; ++i) to[i * wide + o] = w[static_cast<std::size_t>(o * inputs + i)];
  return t;
}
/// A bias of `outputs` numbers, or zeros where it is empty.
inline Tensor pack_bias(const std::vector<float>& bias, Index outputs, const char* what) {
  if (bias.empty()) return Tensor(DType::f32, {padded(outputs)});
  require_size(bias, outputs, what);
  return pack(bias, outputs, 1);
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
    weights_ = Out == 1 ? detail::pack(weights, In, 1) : detail::pack(weights, Out, In);
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
  /// Samples that are remembered: what the filters see, and room for a block.
  static constexpr Index kept = (rows + 2 * block - 2) / block * block;
  /// The last inputs, each twice and `kept` apart, so that what a filter sees is never in two pieces; the next goes to
  /// `next`.
  struct State {
    alignas(64) std::array<float, static_cast<std::size_t>(2 * kept * padded(In))> past{};
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
    weights_ = detail::pack(by_tap, Out, Kernel * In);
  }
  const float* weights() const noexcept { return weights_.view().f32(); }  ///< [Kernel][In][padded Out]
  const float* bias() const noexcept { return bias_.view().f32(); }

 private:
  Tensor weights_, bias_;
};

namespace detail {

/// What GRU and LSTM share: weights of input and state and their biases, in blocks of so many outputs that each block's
/// weights are read in one go: [block][input][gate][column]. All gates but the last are logistic,
/// 1 / (1 + e^-x) = (1 + tanh(x / 2)) / 2: their weights and biases are halved, which is exact.
template <Index In, Index Hidden, Index Gates>
class Recurrent {
 public:
  static constexpr Index inputs = In, outputs = Hidden, gates = Gates, row = Gates * kernel::column_block,
                         blocks = padded(Hidden) / kernel::column_block;

  const float* input_weights(Index b) const noexcept { return w_.view().f32() + b * In * row; }
  const float* state_weights(Index b) const noexcept { return r_.view().f32() + b * Hidden * row; }
  /// Of the inputs; of the state, too, where both are added.
  const float* bias(Index b) const noexcept { return bias_.view().f32() + b * row; }
  /// Of the state in the last gate, 0 in the others, where they are not.
  const float* state_bias(Index b) const noexcept { return bias(blocks + b); }

 protected:
  Recurrent(const std::vector<float>& w, const std::vector<float>& r, std::vector<float> bias, bool last_apart) {
    require_size(w, Gates * Hidden * In, "a recurrent layer's input weights");
    require_size(r, Gates * Hidden * Hidden, "a recurrent layer's state weights");
    constexpr auto half = static_cast<std::size_t>(Gates * Hidden);
    if (bias.empty()) bias.resize(2 * half);
    require_size(bias, 2 * Gates * Hidden, "a recurrent layer's bias");
    w_ = pack_blocks(w, In);
    r_ = pack_blocks(r, Hidden);
    std::vector<float> both(2 * half);
    const std::size_t apart = last_apart ? half - static_cast<std::size_t>(Hidden) : half;
    for (std::size_t i = 0; i < half; ++i) {
      both[i] = bias[i] + (i < apart ? bias[half + i] : 0);
      both[half + i] = i < apart ? 0 : bias[half + i];
    }
    bias_ = Tensor(DType::f32, {2, blocks * row});
    for (const std::size_t of : {std::size_t{0}, half}) {
      const Tensor packed = pack_blocks({both.data() + of, both.data() + of + half}, 1);
      std::copy_n(packed.view().f32(), blocks * row,
                  static_cast<float*>(bias_.mutable_data()) + (of == 0 ? 0 : blocks * row));
    }
  }

 private:
  static Tensor pack_blocks(const std::vector<float>& w, Index columns) {
    constexpr Index wide = kernel::column_block;
    Tensor t(DType::f32, {blocks, columns, Gates, wide});
    auto* to = static_cast<float*>(t.mutable_data());
    for (Index g = 0; g < Gates; ++g)
      for (Index o = 0; o < Hidden; ++o)
        for (Index i = 0; i < columns; ++i)
          to[((o / wide * columns + i) * Gates + g) * wide + o % wide] =
              w[static_cast<std::size_t>((g * Hidden + o) * columns + i)] * (g + 1 < Gates ? 0.5f : 1.0f);
    return t;
  }

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
    bool backwards = false;  ///< whether the next sample begins with the last block
  };
  /// ONNX's order of gates, z r h: `w` [3 Hidden][In], `r` [3 Hidden][Hidden], `bias` [2][3 Hidden] or empty.
  Gru(const std::vector<float>& w, const std::vector<float>& r, const std::vector<float>& bias)
      : detail::Recurrent<In, Hidden, 3>(w, r, bias, true) {}
};

/// Long short-term memory (Hochreiter and Schmidhuber 1997) without peepholes.
template <Index In, Index Hidden>
class Lstm : public detail::Recurrent<In, Hidden, 4> {
 public:
  struct State {
    alignas(64) std::array<float, static_cast<std::size_t>(padded(Hidden))> h{};
    alignas(64) std::array<float, static_cast<std::size_t>(padded(Hidden))> c{};
    bool backwards = false;
  };
  /// ONNX's order of gates, i o f c: `w` [4 Hidden][In], `r` [4 Hidden][Hidden], `bias` [2][4 Hidden] or empty.
  Lstm(const std::vector<float>& w, const std::vector<float>& r, const std::vector<float>& bias)
      : detail::Recurrent<In, Hidden, 4>(w, r, bias, false) {}
};

}  // namespace offramp::stream

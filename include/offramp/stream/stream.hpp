/// @file stream.hpp
/// Small networks over a stream of samples, such as audio: one step at a time, in well under a microsecond.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <span>
#include <string>
#include <tuple>
#include <utility>

#include "offramp/stream/layers.hpp"
#include "offramp/stream/targets.hpp"

namespace offramp {

/// A chain of layers whose sizes the compiler knows, compiled into one function for each instruction set. Immutable;
/// what it remembers of a stream stands in a State, and any number of streams may use it at once.
///
///     Stream net(stream::Gru<1, 16>(w, r, b), stream::Dense<16, 1>(v, c));
///     auto state = net.make_state();
///     for (float& x : samples) x = net.step(state, std::span(&x, 1))[0];  // one by one, as they come
///     net.steps(state, samples, samples);                                // or many at once, which is faster
template <stream::Layer... Layers>
class Stream {
  static_assert(sizeof...(Layers) > 0, "a stream has layers");
  using All = std::tuple<Layers...>;

  template <std::size_t... I>
  static constexpr bool fit(std::index_sequence<I...>) {
    return ((std::tuple_element_t<I, All>::outputs == std::tuple_element_t<I + 1, All>::inputs) && ...);
  }
  static_assert(fit(std::make_index_sequence<sizeof...(Layers) - 1>()), "a layer's outputs are the next one's inputs");

 public:
  static constexpr Index inputs = std::tuple_element_t<0, All>::inputs,
                         outputs = std::tuple_element_t<sizeof...(Layers) - 1, All>::outputs;

  /// What the layers remember, and the last output. New, it remembers nothing: all zeros.
  class State {
    friend class Stream;
    std::tuple<typename Layers::State...> layers_;
    alignas(64) std::array<float, static_cast<std::size_t>(stream::padded(inputs))> in_{};
    alignas(64) std::array<float, static_cast<std::size_t>(stream::padded(outputs))> out_{};
  };

  explicit Stream(Layers... layers) : Stream(best_isa(), std::move(layers)...) {}
  explicit Stream(Isa isa, Layers... layers)
      : layers_(std::move(layers)...),
        runs_(stream::detail::runs_for<All, States>(std::min(isa, best_isa()), std::max({Layers::outputs...}))) {}

  State make_state() const noexcept { return {}; }

  /// The answer to the next sample; it stands until the next step of this state.
  std::span<const float, static_cast<std::size_t>(outputs)> step(
      State& s, std::span<const float, static_cast<std::size_t>(inputs)> sample) const noexcept {
    const float* in = sample.data();
    if constexpr (stream::UserLayer<std::tuple_element_t<0, All>>) {
      std::memcpy(s.in_.data(), in, sample.size_bytes());
      in = s.in_.data();
    }
    runs_.step(layers_, s.layers_, in, s.out_.data());
    return std::span(s.out_).template first<static_cast<std::size_t>(outputs)>();
  }

  /// The answers to samples that follow each other, [samples][inputs] to [samples][outputs]: those of as many steps,
  /// within rounding, but weights are read once for several samples. Both may be the same memory where there are as
  /// many outputs as inputs. Raises an Error where the sizes do not fit.
  void steps(State& s, std::span<const float> samples, std::span<float> answers) const {
    const std::size_t count = samples.size() / static_cast<std::size_t>(inputs);
    OFFRAMP_REQUIRE(count * static_cast<std::size_t>(inputs) == samples.size() &&
                        count * static_cast<std::size_t>(outputs) == answers.size(),
                    "a stream of " + std::to_string(inputs) + " inputs and " + std::to_string(outputs) +
                        " outputs: " + std::to_string(samples.size()) + " numbers have no " +
                        std::to_string(answers.size()) + " answers");
    runs_.steps(layers_, s.layers_, samples.data(), static_cast<Index>(count), answers.data());
  }

 private:
  using States = std::tuple<typename Layers::State...>;
  All layers_;
  stream::detail::Runs<All, States> runs_;
};

}  // namespace offramp

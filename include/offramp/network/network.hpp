/// @file network.hpp
/// A network as a C++ type: a chain of layers and exits, built by value.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "offramp/core/tensor.hpp"
#include "offramp/exit/exit.hpp"
#include "offramp/kernel/dispatch.hpp"
#include "offramp/kernel/pack.hpp"
#include "offramp/layer/layers.hpp"
#include "offramp/network/early_exit_network.hpp"

namespace offramp {

/// Where a network starts: the sizes of its input, channels first. `input<3, 32, 32>`.
template <Index... Sizes>
inline constexpr Extents<Sizes...> input{};

namespace detail {

/// The Extents behind each part; a part that does not fit the one before it does not compile.
template <class In, class... Parts>
struct CheckParts {
  static constexpr bool ok = true;
  using Output = In;
};
template <class In, class First, class... Rest>
struct CheckParts<In, First, Rest...> {
  using Next = typename CheckParts<LayerOutput<First, In>, Rest...>::Output;
  using Output = Next;
};
template <class In, class Head, class... Rest>
struct CheckParts<In, Exit<Head>, Rest...> {
  using HeadOutput = LayerOutput<Head, In>;
  using Output = typename CheckParts<In, Rest...>::Output;
  static_assert(!HeadOutput::is_static || !Output::is_static || std::same_as<HeadOutput, Output>,
                "an exit answers other classes than the network");
};

}  // namespace detail

/// A chain of layers and exits over inputs of sizes `In`. Immutable and shared by copies, as a Model is.
///
///     Network net(input<784>, Dense<784, 512>(w1, b1), Relu(), Exit(Dense<512, 10>(h1, c1)), Dense<512, 10>(w2, b2));
template <class In, class... Parts>
class Network {
  static_assert(In::is_static, "a network's input has sizes known to the compiler");
  static_assert(sizeof...(Parts) > 0 &&
                    !IsExit<std::tuple_element_t<sizeof...(Parts) - 1, std::tuple<Parts...>>>::value,
                "a network ends in a layer, whose output is the last exit");

 public:
  /// What the network answers: `Extents<classes>`, or unknown to the compiler.
  using Output = typename detail::CheckParts<In, Parts...>::Output;
  static constexpr Index exits = Index{1} + (Index{0} + ... + Index{IsExit<Parts>::value});

  class State {
   public:
    Index capacity() const noexcept { return capacity_; }

   private:
    friend class Network;
    Index capacity_ = 0, batch_ = 0;
    Tensor memory_;
    float *here_ = nullptr, *there_ = nullptr, *logits_ = nullptr, *scratch_ = nullptr;
  };

  explicit Network(In, Parts... parts) : Network(best_isa(), In{}, std::move(parts)...) {}
  Network(Isa isa, In, Parts... parts) : d_(std::make_shared<Data>(isa, std::move(parts)...)) {}

  Index exit_count() const noexcept { return exits; }
  Index class_count() const noexcept { return d_->classes; }
  Index sample_size() const noexcept { return In::count(); }
  Index max_batch() const noexcept { return std::numeric_limits<std::int32_t>::max(); }
  Cost stage_cost(Index k) const noexcept { return d_->stages[static_cast<std::size_t>(k)]; }
  Cost head_cost(Index k) const noexcept { return d_->heads[static_cast<std::size_t>(k)]; }

  State make_state(Index capacity) const {
    OFFRAMP_REQUIRE(capacity > 0, "a session needs room for at least one sample");
    const auto padded = [](Index n) { return (n + 15) / 16 * 16; };
    const Index room = padded(checked_product(capacity, d_->widest)),
                answers = padded(checked_product(capacity, d_->classes));
    Index scratch = 0;
    std::apply([&](const auto&... p) { ((scratch = std::max(scratch, layer_scratch(part_layer(p), capacity))), ...); },
               d_->parts);
    State s;
    s.capacity_ = capacity;
    s.memory_ = Tensor(DType::f32, {2 * room + answers + scratch});
    s.here_ = static_cast<float*>(s.memory_.mutable_data());
    s.there_ = s.here_ + room;
    s.logits_ = s.there_ + room;
    s.scratch_ = s.logits_ + answers;
    return s;
  }
  void load(State& s, const float* samples, Index batch) const noexcept {
    s.batch_ = batch;
    if constexpr (In::rank == 3) {  // channels go last
      const Index channels = In::sizes[0], pixels = In::count() / In::sizes[0];
      for (Index i = 0; i < batch; ++i)
        kernel::transpose(samples + i * In::count(), channels, pixels, s.here_ + i * In::count());
    } else {
      std::memcpy(s.here_, samples, static_cast<std::size_t>(batch * In::count()) * sizeof(float));
    }
  }
  bool run_stage(State& s, Index k) const noexcept {
    each([&]<std::size_t I>(const auto& part, Index stage) {
      if constexpr (!is_exit<I>) {
        if (stage != k) return;
        part.forward(s.here_, s.there_, s.batch_, s.scratch_, d_->kernels);
        std::swap(s.here_, s.there_);
      }
    });
    if (k + 1 == exits)
      std::memcpy(s.logits_, s.here_, static_cast<std::size_t>(s.batch_ * d_->classes) * sizeof(float));
    return true;
  }
  bool run_head(State& s, Index k) const noexcept {
    each([&]<std::size_t I>(const auto& part, Index stage) {
      if constexpr (is_exit<I>) {
        if (stage == k) part.head.forward(s.here_, s.logits_, s.batch_, s.scratch_, d_->kernels);
      }
    });
    return true;
  }
  const float* logits(const State& s, Index) const noexcept { return s.logits_; }
  void compact(State& s, Index k, std::span<const Index> kept) const noexcept {
    const Index row = d_->widths[static_cast<std::size_t>(k)];
    for (std::size_t to = 0; to < kept.size(); ++to) {
      if (static_cast<Index>(to) != kept[to])
        std::memcpy(s.here_ + static_cast<Index>(to) * row, s.here_ + kept[to] * row,
                    static_cast<std::size_t>(row) * sizeof(float));
    }
    s.batch_ = static_cast<Index>(kept.size());
  }

 private:
  template <std::size_t I>
  static constexpr bool is_exit = IsExit<std::tuple_element_t<I, std::tuple<Parts...>>>::value;

  template <class P>
  static auto& part_layer(P& part) noexcept {
    if constexpr (IsExit<std::remove_const_t<P>>::value) {
      return part.head;
    } else {
      return part;
    }
  }

  struct Data {
    explicit Data(Isa isa, Parts... p) : parts(std::move(p)...), kernels(kernel::kernels_for(isa)) {
      Shape s = In::shape();
      widest = s.count();
      Index stage = 0;
      const auto add = [&](auto& part) {
        auto& layer = part_layer(part);
        const Shape out = layer.bind(s, kernels);
        widest = std::max(widest, out.count());
        if constexpr (IsExit<std::remove_reference_t<decltype(part)>>::value) {
          heads[static_cast<std::size_t>(stage)] = layer_cost(layer);
          widths[static_cast<std::size_t>(stage)] = s.count();
          answers.push_back(out.count());
          ++stage;
        } else {
          stages[static_cast<std::size_t>(stage)] += layer_cost(layer);
          s = out;
        }
      };
      std::apply([&](auto&... part) { (add(part), ...); }, parts);
      classes = s.count();
      for (const Index n : answers)
        OFFRAMP_REQUIRE(n == classes,
                        "an exit answers " + std::to_string(n) + " classes, the network " + std::to_string(classes));
    }

    std::tuple<Parts...> parts;
    const kernel::Kernels& kernels;
    std::array<Cost, static_cast<std::size_t>(exits)> stages{}, heads{};
    std::array<Index, static_cast<std::size_t>(exits)> widths{};
    std::vector<Index> answers;
    Index classes = 0, widest = 0;
  };

  // Calls f<I>(part, stage) for each part in order.
  template <class F>
  void each(F&& f) const noexcept {
    Index stage = 0;
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      ((f.template operator()<I>(std::get<I>(d_->parts), stage), stage += is_exit<I>), ...);
    }
    (std::index_sequence_for<Parts...>{});
  }

  std::shared_ptr<const Data> d_;
};

template <class In, class... Parts>
Network(In, Parts...) -> Network<std::remove_const_t<In>, Parts...>;
template <class In, class... Parts>
Network(Isa, In, Parts...) -> Network<std::remove_const_t<In>, Parts...>;

}  // namespace offramp

/// @file early_exit_network.hpp
/// The one concept that everything above networks is written against.
#pragma once

#include <concepts>
#include <span>

#include "offramp/core/shape.hpp"
#include "offramp/flops/cost.hpp"

namespace offramp {

/// A chain of stages with an exit behind each; the last exit is the network's own output. A network is immutable; what
/// changes lives in its State. `Model` and every `Network<...>` satisfy it.
template <class N>
concept EarlyExitNetwork = std::copy_constructible<N> &&
    requires(const N& n, typename N::State& s, Index k, const float* samples, std::span<const Index> kept) {
  { n.exit_count() }
  noexcept->std::convertible_to<Index>;
  { n.class_count() }
  noexcept->std::convertible_to<Index>;
  { n.sample_size() }
  noexcept->std::convertible_to<Index>;  // floats of one input
  { n.max_batch() }
  noexcept->std::convertible_to<Index>;
  { n.stage_cost(k) }
  noexcept->std::convertible_to<Cost>;  // of one sample
  { n.head_cost(k) }
  noexcept->std::convertible_to<Cost>;
  { n.make_state(k) } -> std::same_as<typename N::State>;  // room for k samples; may raise
  { n.load(s, samples, k) }
  noexcept;  // k samples, NCHW
  { n.run_stage(s, k) }
  noexcept->std::convertible_to<bool>;  // false: the input's elements are out of range
  { n.run_head(s, k) }
  noexcept->std::convertible_to<bool>;
  { n.logits(s, k) }
  noexcept->std::convertible_to<const float*>;  // [live samples][classes]
  { n.compact(s, k, kept) }
  noexcept;  // live sample kept[i] becomes sample i; kept[i] is i, or behind all that are kept
};

/// A network of which samples may skip stages, as a policy's `skip_target` asks for: what a stage needs of a sample is
/// kept in places aside while the stages between run for others.
template <class N>
concept SkippableNetwork = EarlyExitNetwork<N> && requires(const N& n, typename N::State& s, Index k) {
  { n.can_skip(k, k) }
  noexcept->std::convertible_to<bool>;  // from exit k to the stage of another: it needs nothing that those between make
  {n.make_places(s, k, k)};             // for what the stage of an exit needs, so many; may raise
  { n.put_aside(s, k, k, k) }
  noexcept;  // for the stage of an exit: a sample of the batch into a place
  { n.take_back(s, k, k) }
  noexcept;  // for the stage of an exit: the first places' samples become the batch's last
};

/// Of one sample, the last exit alone, without other exits. A network of which some stages serve early exits only (a
/// cascade) has members of its own for this:
///   Cost full_cost() const noexcept;
///   bool run_full(State&) const noexcept;   computes the last exit's logits
template <EarlyExitNetwork N>
Cost full_cost_of(const N& n) noexcept {
  if constexpr (requires { n.full_cost(); }) {
    return n.full_cost();
  } else {
    Cost all;
    for (Index k = 0; k < n.exit_count(); ++k) all += n.stage_cost(k);
    return all;
  }
}

}  // namespace offramp

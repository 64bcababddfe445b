/// @file policy.hpp
/// What an exit policy is given and what it says.
#pragma once

#include <algorithm>
#include <chrono>
#include <concepts>
#include <cstdint>
#include <span>
#include <string>

#include "offramp/core/shape.hpp"
#include "offramp/flops/cost.hpp"

namespace offramp {

/// One sample at one exit.
struct ExitContext {
  Index exit = 0;        ///< numbered by depth
  Index exit_count = 1;  ///< the last is the backbone's own output
  std::span<const float> logits;
  /// Softmax of the logits. What a policy leaves here is the answer's probabilities: an ensemble or a temperature
  /// replaces them.
  std::span<float> probabilities;
  /// Softmax at every exit so far, [exit][class], this one included; rows of exits that were not evaluated are unset.
  std::span<const float> history;
  std::span<const std::uint8_t> evaluated;        ///< for each exit, whether it was
  Cost spent;                                     ///< so far, for this sample, this exit's head included
  Cost next;                                      ///< what the way to the next exit costs; zero at the last
  Cost full;                                      ///< the whole backbone without early exits
  std::chrono::steady_clock::time_point start{};  ///< when the prediction began

  Index class_count() const noexcept { return static_cast<Index>(probabilities.size()); }
  /// The most probable class, the first of equals.
  Index label() const noexcept { return label_of(probabilities); }
  bool has(Index e) const noexcept { return evaluated[static_cast<std::size_t>(e)] != 0; }
  std::span<const float> row(Index e) const noexcept {
    return history.subspan(static_cast<std::size_t>(e * class_count()), probabilities.size());
  }
  static Index label_of(std::span<const float> p) noexcept {
    Index best = 0;
    for (std::size_t i = 1; i < p.size(); ++i)
      best = p[i] > p[static_cast<std::size_t>(best)] ? static_cast<Index>(i) : best;
    return best;
  }
};

/// Leave or go on, and how sure the policy is (larger is surer; the scale is the policy's own).
struct Verdict {
  bool leave = false;
  float confidence = 0;
  bool skip = false;  ///< where it goes on: not to the next exit but to the policy's `skip_target`
};

/// An exit policy: any callable that judges a context, throws nothing, allocates nothing and keeps no state, so that
/// threads may share it. Optional members:
///   bool wants(Index exit) const noexcept     false where the exit is never taken: its head is not run
///   void validate(Index exits, Index classes) const   raises an Error where the policy does not fit a network
///   static constexpr bool looks_back                  true where it reads what exits before said
///   Index skip_target() const noexcept        the exit that samples go to which skip; 0: none does
///   bool may_skip(Index exit) const noexcept  whether samples skip at this exit
template <class P>
concept ExitPolicy = std::copy_constructible<P> && requires(const P& p, ExitContext& c) {
  { p(c) }
  noexcept->std::same_as<Verdict>;
};

/// Whether a policy's confidence depends on what exits before said, as its member `looks_back` says.
template <ExitPolicy P>
constexpr bool policy_looks_back() noexcept {
  if constexpr (requires { P::looks_back; }) {
    return P::looks_back;
  } else {
    return false;
  }
}

/// `p.wants(exit)`, or true where the policy has no such member.
template <ExitPolicy P>
bool policy_wants(const P& p, Index exit) noexcept {
  if constexpr (requires {
                  { p.wants(exit) } -> std::convertible_to<bool>;
                }) {
    return p.wants(exit);
  } else {
    return true;
  }
}

/// The exit that samples go to which skip; 0 where the policy has no such member.
template <ExitPolicy P>
Index policy_skip_target(const P& p) noexcept {
  if constexpr (requires {
                  { p.skip_target() } -> std::convertible_to<Index>;
                }) {
    return p.skip_target();
  } else {
    return 0;
  }
}
template <ExitPolicy P>
bool policy_may_skip(const P& p, Index exit) noexcept {
  if constexpr (requires {
                  { p.may_skip(exit) } -> std::convertible_to<bool>;
                }) {
    return p.may_skip(exit);
  } else {
    return false;
  }
}

/// Raises an Error where the policy says it does not fit.
template <ExitPolicy P>
void policy_validate(const P& p, Index exits, Index classes) {
  if constexpr (requires { p.validate(exits, classes); }) p.validate(exits, classes);
}

}  // namespace offramp

/// @file combine.hpp
/// Policies from policies. Written `a && b`, `a || b`, `!a`, or by name.
#pragma once

#include <algorithm>
#include <utility>

#include "offramp/policy/policy.hpp"

namespace offramp {

/// Leaves where both do; as sure as the less sure.
template <ExitPolicy A, ExitPolicy B>
struct And {
  A first;
  B second;
  Verdict operator()(ExitContext& c) const noexcept {
    const Verdict a = first(c), b = second(c);
    return {a.leave && b.leave, std::min(a.confidence, b.confidence)};
  }
  bool wants(Index e) const noexcept { return policy_wants(first, e) && policy_wants(second, e); }
  void validate(Index exits, Index classes) const {
    policy_validate(first, exits, classes);
    policy_validate(second, exits, classes);
  }
};

/// Leaves where either does; as sure as the surer.
template <ExitPolicy A, ExitPolicy B>
struct Or {
  A first;
  B second;
  Verdict operator()(ExitContext& c) const noexcept {
    const Verdict a = first(c), b = second(c);
    return {a.leave || b.leave, std::max(a.confidence, b.confidence)};
  }
  bool wants(Index e) const noexcept { return policy_wants(first, e) || policy_wants(second, e); }
  void validate(Index exits, Index classes) const {
    policy_validate(first, exits, classes);
    policy_validate(second, exits, classes);
  }
};

/// Leaves where the other would not.
template <ExitPolicy A>
struct Not {
  A policy;
  Verdict operator()(ExitContext& c) const noexcept {
    const Verdict a = policy(c);
    return {!a.leave, -a.confidence};
  }
  void validate(Index exits, Index classes) const { policy_validate(policy, exits, classes); }
};

template <ExitPolicy A, ExitPolicy B>
And<A, B> operator&&(A a, B b) {
  return {std::move(a), std::move(b)};
}
template <ExitPolicy A, ExitPolicy B>
Or<A, B> operator||(A a, B b) {
  return {std::move(a), std::move(b)};
}
template <ExitPolicy A>
Not<A> operator!(A a) {
  return {std::move(a)};
}

}  // namespace offramp

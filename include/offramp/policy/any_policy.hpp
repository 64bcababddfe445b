/// @file any_policy.hpp
#pragma once

#include <memory>
#include <utility>

#include "offramp/policy/constant.hpp"
#include "offramp/policy/policy.hpp"

namespace offramp {

/// Any policy, chosen at run time. Copies share it.
class AnyPolicy {
 public:
  AnyPolicy() : AnyPolicy(Never{}) {}
  template <class P>
  requires(!std::same_as<P, AnyPolicy> && ExitPolicy<P>)  // in this order: the second asks how an AnyPolicy is made
      AnyPolicy(P policy)
      : p_(std::make_shared<Holder<P>>(std::move(policy))) {}  // NOLINT(google-explicit-constructor)

  Verdict operator()(ExitContext& c) const noexcept { return p_->judge(c); }
  bool wants(Index exit) const noexcept { return p_->wants(exit); }
  Index skip_target() const noexcept { return p_->skip_target(); }
  bool may_skip(Index exit) const noexcept { return p_->may_skip(exit); }
  void validate(Index exits, Index classes) const { p_->validate(exits, classes); }

 private:
  struct Base {
    virtual ~Base() = default;
    virtual Verdict judge(ExitContext& c) const noexcept = 0;
    virtual bool wants(Index exit) const noexcept = 0;
    virtual Index skip_target() const noexcept = 0;
    virtual bool may_skip(Index exit) const noexcept = 0;
    virtual void validate(Index exits, Index classes) const = 0;
  };
  template <class P>
  struct Holder final : Base {
    explicit Holder(P p) : policy(std::move(p)) {}
    Verdict judge(ExitContext& c) const noexcept override { return policy(c); }
    bool wants(Index exit) const noexcept override { return policy_wants(policy, exit); }
    Index skip_target() const noexcept override { return policy_skip_target(policy); }
    bool may_skip(Index exit) const noexcept override { return policy_may_skip(policy, exit); }
    void validate(Index exits, Index classes) const override { policy_validate(policy, exits, classes); }
    P policy;
  };
  std::shared_ptr<const Base> p_;
};

}  // namespace offramp

/// @file model_session.hpp
/// Sessions over models, with the policy that the model's file carries.
#pragma once

#include <utility>

#include "offramp/graph/model.hpp"
#include "offramp/policy/parse.hpp"
#include "offramp/session/session.hpp"

namespace offramp {

/// The policy that a model's file carries, or `never`.
inline AnyPolicy policy_of(const Model& model) {
  const auto i = model.metadata().find("offramp.policy");
  return i == model.metadata().end() ? AnyPolicy() : parse_policy(i->second);
}

/// A session that follows the policy of the model's file.
inline Session<Model> make_session(Model model, Index capacity = 1) {
  AnyPolicy policy = policy_of(model);
  return {std::move(model), std::move(policy), capacity};
}

}  // namespace offramp

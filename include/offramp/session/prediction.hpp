/// @file prediction.hpp
#pragma once

#include <span>

#include "offramp/core/shape.hpp"
#include "offramp/flops/cost.hpp"

namespace offramp {

/// The answer to one sample. `probabilities` points into the session and stands until its next call.
struct Prediction {
  Index label = 0;
  float confidence = 0;  ///< what the policy computed at the exit that answered
  std::span<const float> probabilities;
  Index exit = 0;        ///< where the answer was given; the last is the full network's
  Cost cost;             ///< what this sample took, heads included
  Cost full_cost;        ///< what the full network takes, without heads
  bool finite = true;    ///< false where an exit on the way had a logit that was not finite; it was not left there
  bool stopped = false;  ///< true where a progressive call ended before the policy was content
};

}  // namespace offramp

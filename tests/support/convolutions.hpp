/// @file convolutions.hpp
/// What the tests of convolution plans share: the window of a case, and tails of every kind.
#pragma once

#include <algorithm>
#include <cmath>

#include "offramp/layer/fused.hpp"
#include "offramp/layer/window.hpp"
#include "reference.hpp"

namespace test {

/// The window of a case without dilations.
inline offramp::Window window_of(const ConvCase& c) {
  offramp::Window w;
  w.in = {1, c.h, c.w}, w.out = {1, c.out_h(), c.out_w()}, w.kernel = {1, c.kh, c.kw};
  w.stride = {1, c.sh, c.sw}, w.begin = {0, c.top, c.left}, w.end = {0, c.bottom, c.right};
  return w;
}

/// Kind 0 to 3: none, two that kernels apply themselves, one that they do not.
inline offramp::FusedTail tail_of(int kind) {
  using offramp::kernel::Unary;
  static constexpr Unary all[]{Unary::identity, Unary::relu, Unary::clip, Unary::abs};
  offramp::FusedTail tail;
  tail.activation = all[kind];
  tail.alpha = -0.5f, tail.beta = 2.0f;
  return tail;
}
/// What that tail makes of a sum.
inline double after_tail(int kind, double v) {
  return kind == 0 ? v : kind == 1 ? std::max(v, 0.0) : kind == 2 ? std::clamp(v, -0.5, 2.0) : std::fabs(v);
}

}  // namespace test

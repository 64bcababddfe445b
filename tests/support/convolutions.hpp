/// @file convolutions.hpp
/// What the tests of convolution plans share: the window of a case, orders of channels, and tails of every kind.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "offramp/kernel/pack.hpp"
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

/// Of every sample the rows x columns matrix, turned: channels of pixels to pixels of channels, and back.
inline std::vector<float> transposed(std::span<const float> x, Index batch, Index rows, Index columns) {
  std::vector<float> y(x.size());
  for (Index i = 0; i < batch; ++i)
    offramp::kernel::transpose(x.data() + i * rows * columns, rows, columns, y.data() + i * rows * columns);
  return y;
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

/// @file augment.hpp
/// Random changes to images that the full network answers alike: shifts and, where it is blind to them, mirrors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "offramp/core/shape.hpp"

namespace offramp::fit {

/// How samples are changed. Targets are the full network's answers to the changed sample, so nothing is assumed about
/// labels.
struct Augmentation {
  Index channels = 0, height = 0, width = 0;  ///< of an image; 0: samples are left alone
  Index shift = 0;                            ///< pixels along each axis; what comes in is zero
  bool mirror = false;                        ///< left and right
  float share = 0.75f;                        ///< of the samples that are changed at all
};

/// Mirrors an image [channels][height][width] left to right, in place.
inline void mirror_image(std::span<float> image, Index width) noexcept {
  const auto w = static_cast<std::size_t>(width);
  for (std::size_t row = 0; row + w <= image.size(); row += w)
    std::reverse(image.begin() + static_cast<std::ptrdiff_t>(row),
                 image.begin() + static_cast<std::ptrdiff_t>(row + w));
}

/// Moves an image by (down, right) pixels, from `in` to `out`; what comes in is zero.
inline void shift_image(std::span<const float> in, std::span<float> out, Index height, Index width, Index down,
                        Index right) noexcept {
  std::fill(out.begin(), out.end(), 0.0f);
  const Index plane = height * width, planes = static_cast<Index>(in.size()) / plane;
  const Index x0 = std::max<Index>(0, right), x1 = std::min(width, width + right);
  if (x0 >= x1) return;
  for (Index p = 0; p < planes; ++p) {
    for (Index y = std::max<Index>(0, down); y < std::min(height, height + down); ++y) {
      const float* from = in.data() + p * plane + (y - down) * width - right;
      std::copy(from + x0, from + x1, out.data() + p * plane + y * width + x0);
    }
  }
}

/// One changed sample.
inline void augment(std::span<const float> in, std::span<float> out, const Augmentation& a, std::mt19937_64& random) {
  std::uniform_real_distribution<float> chance(0.0f, 1.0f);
  if (a.height == 0 || chance(random) >= a.share) {
    std::copy(in.begin(), in.end(), out.begin());
    return;
  }
  std::uniform_int_distribution<Index> by(-a.shift, a.shift);
  const Index down = by(random), right = by(random);
  shift_image(in, out, a.height, a.width, down, right);
  if (a.mirror && chance(random) < 0.5f) mirror_image(out, a.width);
}

}  // namespace offramp::fit

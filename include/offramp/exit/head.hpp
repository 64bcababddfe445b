/// @file head.hpp
/// Exit heads at run time: how one is built, and one with its weights.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "offramp/core/error.hpp"
#include "offramp/core/shape.hpp"
#include "offramp/layer/grid.hpp"

namespace offramp {

/// What stands at a place where an exit may be: a map of `channels` at each of height x width positions. A sequence of
/// tokens is a map of height 1; a plain vector one of a single position.
struct MapShape {
  Index channels = 0, height = 1, width = 1;
  bool tokens = false;  ///< a sequence [positions][channels], as a transformer has it; else [channels][positions]

  Index positions() const noexcept { return height * width; }
  Index count() const noexcept { return channels * positions(); }
  bool is_image() const noexcept { return !tokens && height > 1 && width > 1; }
  bool operator==(const MapShape&) const = default;
};

/// A convolution of a head: the means of cells x cells positions, then 3 x 3, norm, ReLU. Separable: depthwise, norm,
/// 1 x 1, norm, ReLU.
struct HeadConvDesign {
  Index width = 0, cells = 2;
  bool separable = false;
};

/// The architecture of a head: convolutions, pooling to grids, then linear or with one hidden layer.
struct HeadDesign {
  std::string name;
  std::vector<HeadConvDesign> convolutions;
  std::vector<Index> grids{1};  ///< pools to g x g cells for each g
  bool average = true, maximum = false, first_token = false;
  Index hidden = 0;          ///< units of a hidden layer; 0: linear
  bool class_means = false;  ///< no training: scores are distances to the mean features of each class
  bool reads_earlier =
      false;  ///< also reads the log-probabilities of the exit before (Wołczyk et al. 2021, section 3.1)

  /// Multiply-adds on such a map, for answers of so many classes.
  Index macs(const MapShape& s, Index classes) const noexcept {
    Index h = s.height, w = s.width, c = s.channels, sum = 0;
    for (const HeadConvDesign& d : convolutions) {
      h = (h + d.cells - 1) / d.cells, w = (w + d.cells - 1) / d.cells;
      sum += h * w * (d.separable ? 9 * c + c * d.width : 9 * c * d.width);
      c = d.width;
    }
    Index cells = 0;
    for (const Index g : grids) cells += g * g;
    const Index features = c * (cells * (Index{average} + Index{maximum}) + Index{first_token});
    return sum + (hidden > 0 ? (features + classes) * hidden : features * classes);
  }

  /// Whether it can stand on such a map.
  bool fits(const MapShape& s) const noexcept {
    if (!convolutions.empty() && !s.is_image()) return false;
    if (first_token && !s.tokens) return false;
    Index h = s.height, w = s.width;
    for (const HeadConvDesign& c : convolutions) h = (h + c.cells - 1) / c.cells, w = (w + c.cells - 1) / c.cells;
    const Index largest = grids.empty() ? 1 : *std::max_element(grids.begin(), grids.end());
    return largest == 1 || (s.is_image() && h >= largest && w >= largest);
  }
};

/// The means of cells of size x size positions; those at the far edges may have fewer.
struct HeadAverage {
  Index size = 2;
};

/// A convolution with its norm folded in; weights as ONNX has them, [out][in / groups][kernel][kernel].
struct HeadConv {
  Index in = 0, out = 0, kernel = 3, groups = 1;
  bool relu = false;
  std::vector<float> weights, bias;
};

/// Pools to a g x g grid for each g, and puts the results behind one another: for each grid average then maximum, each
/// [channel][cell].
struct HeadPool {
  std::vector<Index> grids;
  bool average = true, maximum = false, first_token = false;

  /// Features that come out for each channel.
  Index per_channel() const noexcept {
    Index cells = 0;
    for (const Index g : grids) cells += g * g;
    return cells * (Index{average} + Index{maximum}) + Index{first_token};
  }
};

/// A dense layer; weights [out][in].
struct HeadDense {
  Index in = 0, out = 0;
  bool relu = false;
  std::vector<float> weights, bias;
};

using HeadLayer = std::variant<HeadAverage, HeadConv, HeadPool, HeadDense>;

/// A head with its weights, in the order in which its layers run. Where it reads the exit before, the last layer's
/// first inputs are the features and the last ones that exit's log-probabilities.
struct Head {
  std::string name;
  MapShape input;
  Index classes = 0;
  bool reads_earlier = false;
  std::vector<HeadLayer> layers;

  /// Divides all scores by `temperature`, so that their softmax is as sure as it is right (Guo et al., ICML 2017).
  void divide_scores(float temperature) {
    auto& last = std::get<HeadDense>(layers.back());
    for (float& w : last.weights) w /= temperature;
    for (float& b : last.bias) b /= temperature;
  }
};

}  // namespace offramp

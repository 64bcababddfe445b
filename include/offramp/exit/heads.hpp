/// @file heads.hpp
/// Ready-made exit heads for networks written as C++ types.
#pragma once

#include <utility>
#include <vector>

#include "offramp/layer/layers.hpp"

namespace offramp {

/// Global average pooling and a dense layer: the cheapest head for an image.
template <Index Channels, Index Classes>
Chain<GlobalAveragePool, Dense<Channels, Classes>> pooled_linear(std::vector<float> weights, std::vector<float> bias) {
  return Chain<GlobalAveragePool, Dense<Channels, Classes>>(
      GlobalAveragePool(), Dense<Channels, Classes>(std::move(weights), std::move(bias)));
}

/// A strided 3x3 convolution (norm folded in), ReLU, pooling and a dense layer.
template <Index Channels, Index Width, Index Classes, Index Stride = 2>
auto conv_pooled_linear(std::vector<float> conv, std::vector<float> conv_bias, std::vector<float> weights,
                        std::vector<float> bias) {
  return Chain(Conv2d<Channels, Width, 3, Stride>(std::move(conv), std::move(conv_bias)), Relu(), GlobalAveragePool(),
               Dense<Width, Classes>(std::move(weights), std::move(bias)));
}

}  // namespace offramp

/// @file conv_method.hpp
/// The ways in which a convolution is done.
#pragma once

#include <map>
#include <string>

#include "offramp/core/shape.hpp"

namespace offramp {

/// By a direct product, or by Winograd's algorithm.
struct ConvMethod {
  Index m = 0;          ///< output pixels of a tile along each axis: 2, 4 or (with stride 1 in float32) 6; 0: directly
  bool halves = false;  ///< products are done in bfloat16
  bool plain_weights = false;  ///< F(4 x 4) in float32 alone: weights are transformed while they are used
  bool columns = false;        ///< F(4 x 1, 3 x 3) in float32: tiles along the columns alone

  bool operator==(const ConvMethod&) const = default;
};

/// Every way that there is; which of them a convolution can go depends on its shape and on the CPU.
inline constexpr ConvMethod all_conv_methods[]{
    {}, {2}, {4}, {6}, {4, false, true}, {4, false, false, true}, {0, true}, {2, true}, {4, true}};

/// Of convolutions, by the names of their layers.
using ConvMethods = std::map<std::string, ConvMethod>;

}  // namespace offramp

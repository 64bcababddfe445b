/// @file fused.hpp
/// What follows a convolution or a matrix product while its output is still in cache.
#pragma once

#include <limits>
#include <string>

#include "offramp/layer/elementwise.hpp"

namespace offramp {

/// The activation that the fusion pass wrote into a node's attributes `offramp.activation`, `offramp.alpha` and
/// `offramp.beta`, and behind it a pooling of windows of 2 x 2, in `offramp.pooling`.
struct FusedTail {
  kernel::Unary activation = kernel::Unary::identity;
  float alpha = 0, beta = 0;
  kernel::Pooling pooling = kernel::Pooling::none;
  Index executed = 0;  ///< executed FLOPs for each output element

  FusedTail() = default;
  explicit FusedTail(const Node& node) {
    const std::string name = node.text("offramp.activation", "");
    alpha = node.real("offramp.alpha", 0);
    beta = node.real("offramp.beta", 0);
    if (name == "Clip") {
      activation = kernel::Unary::clip;
      executed = 1;
    } else if (!name.empty()) {
      const UnaryFunction* f = find_unary(name);
      OFFRAMP_REQUIRE(f && f->kernel != kernel::Unary::count, "cannot fuse " + name);
      activation = f->kernel;
      executed = f->executed;
    }
    if (const std::string pool = node.text("offramp.pooling", ""); !pool.empty()) {
      OFFRAMP_REQUIRE(pool == "MaxPool" || pool == "AveragePool", "cannot fuse " + pool);
      pooling = pool == "MaxPool" ? kernel::Pooling::maximum : kernel::Pooling::average;
      executed += 1;
    }
  }
};

}  // namespace offramp

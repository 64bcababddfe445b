/// @file designs.hpp
/// The exit heads that are tried at a place.
#pragma once

#include <algorithm>
#include <vector>

#include "offramp/exit/head.hpp"

namespace offramp {

/// Heads of growing cost for a map: pooled and linear, pooled to grids, with a hidden layer, nearest class mean, and
/// for images convolutions, plain and depthwise-separable, each of means of cells: as cheap as strided ones of the same
/// size, cheaper where Winograd's algorithm applies, and better, as each output sees more of the map.
inline std::vector<HeadDesign> head_designs(const MapShape& s) {
  std::vector<HeadDesign> all;
  const auto add = [&](HeadDesign d) {
    if (d.fits(s)) all.push_back(std::move(d));
  };
  const auto pooled = [](const char* name, std::vector<Index> grids, bool maximum, Index hidden) {
    HeadDesign d;
    d.name = name;
    d.grids = std::move(grids);
    d.maximum = maximum;
    d.hidden = hidden;
    return d;
  };
  add(pooled("linear", {1}, false, 0));
  HeadDesign means = pooled("class means", {1}, false, 0);
  means.class_means = true;
  add(means);
  if (s.tokens) {
    HeadDesign first = pooled("first token", {1}, false, 0);
    first.average = false;
    first.first_token = true;
    add(first);
    add(pooled("mean and maximum, hidden", {1}, true, 64));
    return all;
  }
  if (!s.is_image()) {
    add(pooled("hidden", {1}, s.positions() > 1, 64));
    return all;
  }
  add(pooled("grid, linear", {1, 2}, true, 0));
  add(pooled("grid, hidden", {1, 2}, true, 64));
  const Index narrow = std::clamp<Index>(2 * s.channels, 24, 64), wide = std::clamp<Index>(3 * s.channels, 48, 96);
  const auto convolved = [&](const char* name, std::vector<HeadConvDesign> layers) {
    HeadDesign d = pooled(name, {1, 2}, true, 0);
    d.convolutions = std::move(layers);
    // A grid needs as many rows as it has cells.
    if (!d.fits(s)) d.grids = {1};
    add(std::move(d));
  };
  convolved("separable", {{48, s.height < 12 ? 2 : 4, true}, {96, 1, true}});
  convolved("wide separable", {{64, 2, true}, {128, 2, true}});
  convolved("convolution", {{wide, 2, false}});
  convolved("two convolutions", {{narrow, 2, false}, {wide, 2, false}});
  if (s.height >= 12) convolved("three convolutions", {{narrow, 2, false}, {wide, 2, false}, {wide, 1, false}});
  return all;
}

}  // namespace offramp

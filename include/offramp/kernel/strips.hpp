/// @file strips.hpp
/// How the rows of a product are shared among tiles of a few heights.
#pragma once

#include <cstddef>

#include "offramp/core/shape.hpp"

namespace offramp::kernel {

/// Strips of nearly the same height for all rows of `g`, each made by the lowest of `tiles` (by height, `rows` and
/// `run` each) that they need; the last one overlaps the one before it where no tile has its height.
template <class G, class Tile, std::size_t N>
void each_strip(const G& g, Index block, const Tile (&tiles)[N]) noexcept {
  for (Index row = 0; row < g.m;) {
    const Index left = g.m - row, most = tiles[N - 1].rows, strips = (left + most - 1) / most;
    const Tile* tile = tiles;
    while (tile->rows * strips < left && tile[1].rows <= g.m) ++tile;
    const Index last = g.m - tile->rows;
    tile->run(g, row < last ? row : last > 0 ? last : 0, block);
    row += tile->rows;
  }
}

}  // namespace offramp::kernel

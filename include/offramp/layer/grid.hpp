/// @file grid.hpp
/// Pooling grids: windows that cover an axis.
#pragma once

#include "offramp/core/shape.hpp"

namespace offramp {

/// One axis of a pooling grid: `cells` windows of `kernel` positions, `stride` apart, that cover `size` positions. They
/// overlap where the size is no multiple of the cells.
struct GridAxis {
  Index stride = 1, kernel = 1;
  constexpr GridAxis(Index size, Index cells) noexcept : stride(size / cells), kernel(size - stride * (cells - 1)) {}
};

/// Elements of a cell where an image of height times width has `grid` times `grid` cells.
constexpr Index grid_cell(Index height, Index width, Index grid) noexcept {
  return GridAxis(height, grid).kernel * GridAxis(width, grid).kernel;
}

}  // namespace offramp

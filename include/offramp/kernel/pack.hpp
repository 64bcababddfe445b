/// @file pack.hpp
/// Weights in the order that the matrix kernel reads them, and the transposition between channel orders.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "offramp/core/shape.hpp"
#include "offramp/kernel/kernels.hpp"

namespace offramp::kernel {

/// Floats that a packed k x n matrix takes.
constexpr Index packed_size(Index k, Index n) noexcept {
  return k * padded_columns(n);
}

/// Packs the k x n matrix whose element (i, j) is b[i * row_step + j * column_step], times `scale`: blocks of 16
/// columns, each [k][16], the last padded with zeros.
inline void pack(const float* b, Index row_step, Index column_step, Index k, Index n, float scale,
                 float* out) noexcept {
  for (Index j0 = 0; j0 < n; j0 += column_block, b += column_block * column_step, out += k * column_block) {
    const Index width = std::min(column_block, n - j0);
    if (width == column_block && column_step == 1 && scale == 1) {
      for (Index i = 0; i < k; ++i) std::memcpy(out + i * column_block, b + i * row_step, sizeof(float) * column_block);
      continue;
    }
    if (width < column_block) std::fill_n(out, k * column_block, 0.0f);
    Index j = 0;
    for (; j + 4 <= width; j += 4) {  // of four columns in turn: each is read along, or all are
      const float* from = b + j * column_step;
      float* to = out + j;
      for (Index i = 0; i < k; ++i, from += row_step, to += column_block) {
        const float x0 = from[0], x1 = from[column_step], x2 = from[2 * column_step], x3 = from[3 * column_step];
        to[0] = x0 * scale, to[1] = x1 * scale, to[2] = x2 * scale, to[3] = x3 * scale;
      }
    }
    for (; j < width; ++j) {
      for (Index i = 0; i < k; ++i) out[i * column_block + j] = b[i * row_step + j * column_step] * scale;
    }
  }
}

/// out[c][r] = in[r][c], in tiles that stay in L1. Rows of `in` are `stride` apart.
template <class T>
void transpose(const T* in, Index rows, Index columns, Index stride, T* out) noexcept {
  if (rows == 3) {  // the planes of an image, to pixels
    for (Index c = 0; c < columns; ++c, out += 3) {
      out[0] = in[c];
      out[1] = in[stride + c];
      out[2] = in[2 * stride + c];
    }
    return;
  }
  constexpr Index tile = 16;
  for (Index r0 = 0; r0 < rows; r0 += tile) {
    const Index r1 = std::min(rows, r0 + tile);
    for (Index c0 = 0; c0 < columns; c0 += tile) {
      const Index c1 = std::min(columns, c0 + tile);
      for (Index c = c0; c < c1; ++c) {
        for (Index r = r0; r < r1; ++r) out[c * rows + r] = in[r * stride + c];
      }
    }
  }
}

template <class T>
void transpose(const T* in, Index rows, Index columns, T* out) noexcept {
  transpose(in, rows, columns, columns, out);
}

/// Whether the matrix kernel should keep a panel of B in cache and walk the rows inside: B overflows half of a usual
/// L2.
constexpr bool prefer_columns_outside(Index m, Index n, Index k) noexcept {
  return m > 14 && packed_size(k, n) * static_cast<Index>(sizeof(float)) > 512 * 1024;
}

}  // namespace offramp::kernel

/// @file kernels.hpp
/// What a vector kernel takes, and the table of kernels of one instruction set.
#pragma once

#include <cstdint>

#include "offramp/core/shape.hpp"
#include "offramp/kernel/bf16.hpp"
#include "offramp/kernel/integer.hpp"

namespace offramp::kernel {

/// Columns of a packed weight matrix stand in blocks of this many, whatever the vector's length.
inline constexpr Index column_block = 16;

constexpr Index padded_columns(Index n) noexcept {
  return (n + column_block - 1) / column_block * column_block;
}

/// What is made of the numbers of a window; of those that a convolution takes behind it, 2 x 2 of them.
enum class Pooling : std::uint8_t { none, average, maximum };

/// Functions of one variable with a vector kernel. `alpha` and `beta` mean what ONNX means by them.
enum class Unary : std::uint8_t {
  identity,
  relu,
  leaky_relu,
  clip,  // alpha: lower, beta: upper
  sigmoid,
  tanh,
  exp,
  erf,
  gelu,  // x * (1 + erf(x / sqrt 2)) / 2
  silu,  // x * sigmoid(x)
  elu,
  hard_sigmoid,
  hard_swish,
  sqrt,
  reciprocal,
  neg,
  abs,
  count
};

/// Functions of two variables with a vector kernel.
enum class Binary : std::uint8_t { add, sub, mul, div, max, min, prelu, count };

/// What a kernel asks memory for while it makes a strip of C: `steps` times a cache line for each of its blocks of
/// columns, `rate` times at every fourth k. The product sets it by itself.
struct Ahead {
  const float* at = nullptr;
  Index steps = 0, rate = 1;
  Index step = 0, across = 0;  ///< floats from step to step, and from block to block
};

/// The activations that are cheap enough for sums in registers.
constexpr bool is_cheap(Unary f) noexcept {
  return f == Unary::identity || f == Unary::relu || f == Unary::clip;
}

/// A matrix product C = act(A B + bias + residual). A is given by row addresses, `taps` runs of `run` elements each, so
/// that a convolution's window is read where it lies (indirect convolution, Dukhan 2019, arXiv 1907.02129).
struct Gemm {
  Index m = 0, n = 0;        ///< rows and columns of C
  Index taps = 1, run = 0;   ///< K = taps * run
  const float* a = nullptr;  ///< without offsets: tap t of row i starts at a + i * lda + t * tap_step
  Index lda = 0, tap_step = 0;
  const std::int32_t* offsets = nullptr;  ///< else [m][taps] element offsets from `a`; negative: a run of zeros
  const float* zeros = nullptr;           ///< at least `run` zeros
  const float* b = nullptr;               ///< packed: block of 16 columns after block, each [K][16]
  Index b_step = 0;                       ///< floats between two blocks; 0: 16 K
  const float* bias = nullptr;            ///< null, or n padded to a multiple of 16
  const float* residual = nullptr;        ///< null, or m rows, `ldr` apart
  Index ldr = 0;
  float* c = nullptr;
  Index ldc = 0;
  Unary activation = Unary::identity;
  float alpha = 0, beta = 0;
  Ahead ahead;
  bool columns_outside = false;  ///< keep a panel of B in cache and walk the rows inside
};

/// C = act(A B' + bias + residual) with the columns of B' where they lie, each a row of K floats: for weights that are
/// larger than a cache and meet few rows, packing would only double them. A row of C does not depend on how many there
/// are.
struct DotGemm {
  Index m = 0, n = 0, k = 0;
  const float* a = nullptr;         ///< row i at a + i * k
  const float* b = nullptr;         ///< column j at b + j * k
  const float* bias = nullptr;      ///< null, or [n]
  const float* residual = nullptr;  ///< null, or m rows, `ldr` apart
  Index ldr = 0;
  float* c = nullptr;
  Index ldc = 0;
  Unary activation = Unary::identity;
  float alpha = 0, beta = 0;
};

/// C = A B with A and C in blocks of 16 columns, each [m][16], for each of `planes`: the products of a Winograd
/// convolution. At least `least_rows` rows of A are read and of C written, whatever m is.
struct BlockedGemm {
  static constexpr Index least_rows = 4;
  Index planes = 1, a_plane = 0, b_plane = 0, c_plane = 0;  ///< how many, and elements between two of them
  Index m = 0, n = 0, k = 0;
  const float* a = nullptr;
  Index a_block = 0;         ///< floats between two blocks of A
  const float* b = nullptr;  ///< packed: block of 16 columns after block, each [k][16]
  float* c = nullptr;
  Index c_block = 0;
  const std::byte* ahead = nullptr;  ///< null, or what will be read next: asked for, a part with each plane
  Index ahead_bytes = 0;
};

/// Depthwise convolution, channels last, one image. The multiplier is 1.
struct Depthwise {
  Index channels = 0, in_h = 0, in_w = 0, out_h = 0, out_w = 0;
  Index kernel_h = 0, kernel_w = 0, stride_h = 1, stride_w = 1, dilation_h = 1, dilation_w = 1, pad_top = 0,
        pad_left = 0;
  Index first_row = 0;  ///< of the image, that `out` begins with; out_h counts from there
  const float* in = nullptr;
  const float* weights = nullptr;  ///< [kernel_h][kernel_w][channels]
  const float* bias = nullptr;     ///< null, or [channels]
  float* out = nullptr;
  Unary activation = Unary::identity;
  float alpha = 0, beta = 0;
};

/// The tiles of a Winograd convolution F(m x m, 3 x 3) with stride 1 (Lavin and Gray, CVPR 2016, section 4.1), channels
/// last. Tiles are counted over the whole batch. A transformed tile stands in `points()` planes, `plane` floats apart,
/// each in blocks of 16 channels, `block` floats apart, each [tile - first][16].
struct Winograd {
  Index m = 2;  ///< output pixels of a tile along each axis: 2, 4 or 6
  Index in_h = 0, in_w = 0, out_h = 0, out_w = 0, pad_top = 0, pad_left = 0;
  Index channels = 0;          ///< that are transformed
  Index pixel = 0;             ///< floats from pixel to pixel
  Index first = 0, count = 0;  ///< the tiles
  Index plane = 0, block = 0;
  const float* bias = nullptr;      ///< output only: null, or [channels]
  const float* residual = nullptr;  ///< output only: null, or of the output's shape
  Unary activation = Unary::identity;
  float alpha = 0, beta = 0;
  Pooling pooling = Pooling::none;  ///< output only, without a residual: what is written has half the rows and columns

  Index points() const noexcept { return (m + 2) * (m + 2); }
  Index tiles_down() const noexcept { return (out_h + m - 1) / m; }
  Index tiles_across() const noexcept { return (out_w + m - 1) / m; }
};

/// The products of F(4 x 4, 3 x 3) with weights that are transformed while they are used, which pays where tiles are
/// few: a quarter of the bytes to read. A and C in a plane for each of the 36 points, as `Winograd` has them; tiles up
/// to a multiple of `rows` are read and written.
struct WinogradProducts {
  static constexpr Index rows = 4;
  Index m = 0, k = 0;  ///< tiles, input channels
  const float* a = nullptr;
  Index a_plane = 0, a_block = 0;
  const float* weights = nullptr;  ///< blocks of 16 output channels, each [k][3][3][16]
  float* c = nullptr;
  Index c_plane = 0, c_block = 0;
  Index blocks = 0;              ///< of output channels
  const float* ahead = nullptr;  ///< null, or what will be read next: asked for with the last of the weights
};

/// A convolution by F(4 x 4, 3 x 3) of 16 channels to 16, as many pixels a side as fours make and at most one outside
/// of the image. There products are so short that the way of a tile through L2, to them and from them, would take as
/// long as the transformations: here some tiles at a time go through in L1, twelve points (two rows) after the other,
/// whose part of A^T m A is added up in the output.
struct WinogradNarrow {
  static constexpr Index together = 16, tile = 12 * column_block;  ///< tiles; floats from one to the next
  static constexpr Index memory_floats = together * tile;

  Winograd tiles;  ///< `plane` and `block` do not matter
  const float* in = nullptr;
  const float* weights = nullptr;  ///< transformed, [36][16][16]
  float* memory = nullptr;         ///< `memory_floats`
  float* out = nullptr;
  const std::byte* ahead = nullptr;   ///< null, or what will be read next
  Index ahead_bytes = 0, planes = 1;  ///< asked for in so many parts: 36 for every `together` tiles
};

/// Tiles of a convolution 3 x 3 with stride 2 by F(m x m, 3 x 3). Along each axis the outer two of three weights meet
/// every second pixel, which is F(m, 2), and the one between them the other pixels: 2 m + 1 multiplications for m
/// outputs instead of 3 m (Yepez and Ko, "Stride 2 1-D, 2-D, and 3-D Winograd for convolutional neural networks", IEEE
/// TVLSI 28, 2020). A row of points goes through after the other, whose part of A^T M A is added up in the output.
struct WinogradStrided {
  /// A row of B^T and a column of A^T for one axis.
  struct Point {
    Index terms = 0;
    std::int8_t pixel[4]{};  ///< of the tile: terms
    float factor[4]{};
    Index first = 0, last = 0;  ///< outputs, of which each takes the product times
    float share[4]{1, 1, 1, 1};
  };

  static constexpr Index side(Index m) noexcept { return 2 * m + 1; }

  Winograd tiles;         ///< m is 2 or 4, pixels and channels are those of the output
  Index in_channels = 0;  ///< a multiple of 16, as the channels of the output are
  const float* in = nullptr;
  const float* weights = nullptr;                ///< transformed, for each point as in `BlockedGemm`
  Index weight_plane = 0;                        ///< floats from point to point
  float* memory = nullptr;                       ///< a row of points of the tiles: inputs and products
  Index in_plane = 0, out_plane = 0, block = 0;  ///< floats from point to point, and from 16 channels to 16
  float* out = nullptr;
  const std::byte* ahead = nullptr;   ///< null, or what will be read next
  Index ahead_bytes = 0, planes = 1;  ///< asked for in so many parts, one with each row of points
};

/// The points of F(2 x 2) along an axis: 0, 1 and infinity of every second pixel, then the pixels between them.
inline constexpr WinogradStrided::Point winograd_strided_points_2[]{{2, {0, 2}, {1, -1}, 0, 1},
                                                                    {1, {2}, {1}, 0, 2},
                                                                    {2, {4, 2}, {1, -1}, 1, 2},
                                                                    {1, {1}, {1}, 0, 1},
                                                                    {1, {3}, {1}, 1, 2}};
/// Those of F(4 x 4): 0, 1, -1, 2 and infinity, then the pixels between.
inline constexpr WinogradStrided::Point winograd_strided_points_4[]{{4, {0, 2, 4, 6}, {2, -1, -2, 1}, 0, 1},
                                                                    {3, {2, 4, 6}, {-2, -1, 1}, 0, 4},
                                                                    {3, {2, 4, 6}, {2, -3, 1}, 0, 4, {1, -1, 1, -1}},
                                                                    {2, {2, 6}, {-1, 1}, 0, 4, {1, 2, 4, 8}},
                                                                    {4, {2, 4, 6, 8}, {2, -1, -2, 1}, 3, 4},
                                                                    {1, {1}, {1}, 0, 1},
                                                                    {1, {3}, {1}, 1, 2},
                                                                    {1, {5}, {1}, 2, 3},
                                                                    {1, {7}, {1}, 3, 4}};

/// Four rows of outputs of a convolution 3 x 3 with stride 1 by F(4 x 1, 3 x 3): Winograd's filtering down the columns
/// alone, half of the multiplications, which needs no way through memory: for images of a few channels, whose sums are
/// too short for the products of a whole tile. Of the six rows that it reads, `winograd_columns` made B^T d.
struct WinogradRows {
  Index channels = 0;              ///< of the input
  const float* columns = nullptr;  ///< six rows of each channel with their padding: two pixels more are read than
                                   ///< `width` rounded up to a multiple of 16
  Index row = 0, channel = 0;      ///< floats from row to row, and from channel to channel
  const float* weights = nullptr;  ///< transformed: blocks of 16 output channels, each [6][channels][3][16]
  const float* bias = nullptr;     ///< null, or the output channels padded to a multiple of 16
  float* out = nullptr;            ///< `rows` of `width` pixels
  Index out_row = 0, out_channels = 0;
  Index width = 0, rows = 0;
  Unary activation = Unary::identity;
  float alpha = 0, beta = 0;
};

/// Maximum or average pooling, channels last, one image.
struct Pool2d {
  bool maximum = true, count_padding = false;
  Index channels = 0, in_h = 0, in_w = 0, out_h = 0, out_w = 0;
  Index kernel_h = 0, kernel_w = 0, stride_h = 1, stride_w = 1, dilation_h = 1, dilation_w = 1, pad_top = 0,
        pad_left = 0;
  Index pad_bottom = 0, pad_right = 0;
  Index first_row = 0;  ///< of the image, that `out` begins with; out_h counts from there
  const float* in = nullptr;
  float* out = nullptr;
};

/// The kernels of one instruction set. Every function is free of side effects but for its output, allocates nothing
/// and throws nothing; any number of threads may call it.
struct Kernels {
  Index lanes;  ///< floats in a vector
  void (*gemm)(const Gemm&) noexcept;
  void (*dot_gemm)(const DotGemm&) noexcept;
  void (*blocked_gemm)(const BlockedGemm&) noexcept;
  void (*depthwise)(const Depthwise&) noexcept;
  /// Largest Winograd tile. With 16 registers of four lanes that of 6 x 6 is worth neither its time nor its code.
  Index winograd_tile;
  /// Input [batch][in_h][in_w][channels] to transformed tiles.
  void (*winograd_input)(const Winograd&, const float* in, float* tiles) noexcept;
  /// Products of transformed tiles to output [batch][out_h][out_w][channels], or half of its rows and columns.
  void (*winograd_output)(const Winograd&, const float* tiles, float* out) noexcept;
  /// Null where the registers are too few.
  void (*winograd_products)(const WinogradProducts&) noexcept;
  void (*winograd_narrow)(const WinogradNarrow&) noexcept;  ///< null where vectors have less than 16 lanes
  void (*winograd_strided)(const WinogradStrided&) noexcept;
  /// B^T d of F(4, 3) down six rows of n floats, to six rows `step` apart.
  void (*winograd_columns)(const float* const rows[6], float* out, Index step, Index n) noexcept;
  void (*winograd_rows)(const WinogradRows&) noexcept;
  void (*pool2d)(const Pool2d&) noexcept;
  /// Sum and largest element of each channel over a rectangle of rows x columns pixels, channels last, rows of the
  /// image `row_step` floats apart. Either may be null.
  void (*pool_cell)(const float* in, Index row_step, Index rows, Index columns, Index channels, float* sum,
                    float* largest) noexcept;
  /// out[i] = f(in[i]); in and out may be the same.
  void (*unary)(Unary, const float* in, float* out, Index n, float alpha, float beta) noexcept;
  /// out[i] = f(a[i * a_step], b[i * b_step]); a step is 0 or 1; out may be a or b.
  void (*binary)(Binary, const float* a, Index a_step, const float* b, Index b_step, float* out, Index n) noexcept;
  /// Softmax (or its logarithm) of each of `rows` rows of n elements, n at least 1.
  void (*softmax)(const float* in, float* out, Index rows, Index n, bool logarithm) noexcept;
  /// (x - mean) / sqrt(variance + epsilon) * scale + bias over rows of n; scale and bias may be null.
  void (*layer_norm)(const float* in, float* out, Index rows, Index n, float epsilon, const float* scale,
                     const float* bias) noexcept;
  /// out[i * channels + c] = in[c * plane + i] for n pixels.
  void (*interleave)(const float* in, Index plane, Index channels, float* out, Index n) noexcept;
  /// out[c] = scale * sum over rows of in[row * n + c].
  void (*sum_rows)(const float* in, float* out, Index rows, Index n, float scale) noexcept;
  /// The sum of n floats, in lanes.
  float (*sum)(const float* in, Index n) noexcept;
  /// `rounds` times 12 independent vector multiply-adds in registers, lanes * 24 FLOPs a round: the peak that speeds
  /// are measured against. Returns a sum, so that nothing is optimised away.
  float (*multiply_adds)(Index rounds, float x) noexcept;
  const IntegerKernels* integer;  ///< the kernels on bytes
  const Bf16Kernels* bf16;        ///< the kernels on bfloat16, or null
};

}  // namespace offramp::kernel

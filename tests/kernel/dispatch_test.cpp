// Every vector kernel of every instruction set against a plain reference.
#include "offramp/kernel/dispatch.hpp"

#include <gtest/gtest.h>

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <random>

#include "offramp/kernel/pack.hpp"
#include "reference.hpp"

namespace offramp::kernel {
namespace {

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

class EveryIsa : public ::testing::TestWithParam<Isa> {
 protected:
  const Kernels& k = kernels_for(GetParam());
};

std::vector<float> packed(const std::vector<float>& b, Index k, Index n) {
  std::vector<float> p(static_cast<std::size_t>(packed_size(k, n)));
  pack(b.data(), n, 1, k, n, 1.0f, p.data());
  return p;
}

void expect_gemm_equals_eigen(const Kernels& k, Index m, Index n, Index depth, bool columns_outside, unsigned seed) {
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const auto a = test::random_floats(m * depth, ++seed), b = test::random_floats(depth * n, ++seed),
             bias = test::random_floats(padded_columns(n), ++seed), residual = test::random_floats(m * n, ++seed);
  const auto p = packed(b, depth, n);
  std::vector<float> c(static_cast<std::size_t>(m * n), nan);
  Gemm g;
  g.m = m, g.n = n, g.run = depth, g.a = a.data(), g.lda = depth, g.b = p.data(), g.bias = bias.data(),
  g.residual = residual.data(), g.ldr = n, g.c = c.data(), g.ldc = n;
  g.activation = Unary::relu;
  g.columns_outside = columns_outside;
  k.gemm(g);
  const Matrix expected =
      ((Eigen::Map<const Matrix>(a.data(), m, depth) * Eigen::Map<const Matrix>(b.data(), depth, n)).rowwise() +
       Eigen::Map<const Eigen::RowVectorXf>(bias.data(), n)) +
      Eigen::Map<const Matrix>(residual.data(), m, n);
  const double error = (expected.cwiseMax(0.0f) - Eigen::Map<const Matrix>(c.data(), m, n)).cwiseAbs().maxCoeff() /
                       std::max(1e-3f, expected.cwiseAbs().maxCoeff());
  ASSERT_LT(error, 1e-5) << m << "x" << n << "x" << depth;
}

TEST_P(EveryIsa, GemmEqualsEigen) {
  unsigned seed = 1;
  for (const Index m : {1, 2, 3, 7, 14, 15, 49, 65}) {
    for (const Index n : {1, 10, 16, 17, 33, 64, 80, 100, 144, 240}) {
      for (const Index depth : {1, 3, 4, 37, 144}) {
        seed += 4;
        ASSERT_NO_FATAL_FAILURE(expect_gemm_equals_eigen(k, m, n, depth, seed % 8 == 1, seed));
      }
    }
  }
}

// Rows at equal steps, as a first layer's windows lie, give what the same rows give that are found by a table.
TEST_P(EveryIsa, LinesOfWindowsEqualATable) {
  constexpr Index taps = 3, tap_step = 300;
  const auto a = test::random_floats(taps * tap_step, 1);
  for (const auto& [m, run, step] : {std::array<Index, 3>{37, 7, 1},
                                     {37, 7, 2},
                                     {37, 7, 3},
                                     {37, 7, 6},
                                     {16, 3, 1},
                                     {28, 3, 1},
                                     {37, 3, 1},
                                     {39, 3, 1}}) {
    for (const Index n : {16, 20, 32, 48}) {
      for (const Unary activation : {Unary::identity, Unary::relu, Unary::clip, Unary::tanh}) {
        Gemm g;
        g.m = m, g.n = n, g.taps = taps, g.run = run;
        const auto b = packed(test::random_floats(taps * run * n, 2), taps * run, n);
        const auto bias = test::random_floats(padded_columns(n), 3);
        const std::vector<float> zeros(16, 0.0f);
        g.a = a.data(), g.lda = step, g.tap_step = tap_step, g.b = b.data(), g.ldc = n;
        if (n != 48) g.bias = bias.data();
        g.activation = activation, g.alpha = -0.5f, g.beta = 0.75f;
        std::vector<float> line(static_cast<std::size_t>(m * n + 1), nan), table = line;
        line.back() = table.back() = 7.0f;
        g.c = line.data();
        k.gemm(g);
        std::vector<std::int32_t> offsets;
        for (Index i = 0; i < m; ++i) {
          for (Index t = 0; t < taps; ++t) offsets.push_back(static_cast<std::int32_t>(i * step + t * tap_step));
        }
        g.offsets = offsets.data(), g.zeros = zeros.data(), g.c = table.data();
        k.gemm(g);
        ASSERT_LT(test::relative_error(line, std::vector<double>(table.begin(), table.end())), 1e-6)
            << m << " rows " << step << " apart, " << n << " columns";
        ASSERT_EQ(line.back(), 7.0f) << m << " rows";
      }
    }
  }
}

// Panels that are deeper than a cache are added up in parts.
TEST_P(EveryIsa, DeepGemmEqualsEigen) {
  for (const Index m : {8, 9, 33}) {
    for (const Index n : {17, 80}) {
      for (const Index depth : {8191, 8192, 9001}) {
        ASSERT_NO_FATAL_FAILURE(expect_gemm_equals_eigen(k, m, n, depth, true, static_cast<unsigned>(m + n)));
      }
    }
  }
}

// Rows that L2 does not keep, and edges of more strips than a buffer holds.
TEST_P(EveryIsa, TallGemmEqualsEigen) {
  for (const Index n : {24, 70, 96}) {
    for (const bool columns_outside : {false, true}) {
      ASSERT_NO_FATAL_FAILURE(expect_gemm_equals_eigen(k, 1003, n, 150, columns_outside, static_cast<unsigned>(n)));
    }
  }
}

// One and two rows against weights of more than an L2 take a way of their own.
TEST_P(EveryIsa, ThinGemmEqualsEigen) {
  for (const Index m : {1, 2, 3}) {
    for (const auto& [n, depth] : {std::pair<Index, Index>{1001, 1050}, {70'001, 15}, {40, 26'300}}) {
      ASSERT_NO_FATAL_FAILURE(expect_gemm_equals_eigen(k, m, n, depth, false, static_cast<unsigned>(m + n)));
    }
  }
}

// Columns that are not packed, with tails of rows, columns and depth; a row is the same whatever stands beside it.
TEST_P(EveryIsa, DotGemmEqualsEigen) {
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  for (const Index n : {1, 7, 24}) {
    for (const Index depth : {1, 16, 37, 4096, 9001}) {
      const auto a = test::random_floats(9 * depth, 1), b = test::random_floats(n * depth, 2),
                 bias = test::random_floats(n, 3), residual = test::random_floats(9 * n, 4);
      const Matrix expected =
          ((Eigen::Map<const Matrix>(a.data(), 9, depth) * Eigen::Map<const Matrix>(b.data(), n, depth).transpose())
               .rowwise() +
           Eigen::Map<const Eigen::RowVectorXf>(bias.data(), n)) +
          Eigen::Map<const Matrix>(residual.data(), 9, n);
      std::vector<float> first;
      for (const Index m : {9, 1, 2, 3, 4, 6}) {
        std::vector<float> c(static_cast<std::size_t>(m * n + 1), 42.0f);
        DotGemm g;
        g.m = m, g.n = n, g.k = depth, g.a = a.data(), g.b = b.data(), g.bias = bias.data();
        g.residual = residual.data(), g.ldr = n, g.c = c.data(), g.ldc = n, g.activation = Unary::relu;
        k.dot_gemm(g);
        const double error =
            (expected.topRows(m).cwiseMax(0.0f) - Eigen::Map<const Matrix>(c.data(), m, n)).cwiseAbs().maxCoeff() /
            std::max(1e-3f, expected.cwiseAbs().maxCoeff());
        ASSERT_LT(error, 1e-5) << m << "x" << n << "x" << depth;
        EXPECT_EQ(c.back(), 42.0f);
        if (first.empty()) first = c;
        for (Index i = 0; i < m * n; ++i)
          ASSERT_EQ(c[static_cast<std::size_t>(i)], first[static_cast<std::size_t>(i)]) << m << " " << i;
      }
    }
  }
}

// What pooled heads read, with tails of every length.
TEST_P(EveryIsa, PoolCellsEqualPlainLoops) {
  for (const Index n : {1, 7, 16, 18, 33, 64}) {
    const Index rows = 300;
    const auto x = test::random_floats(rows * n, 2);
    std::vector<float> sum(static_cast<std::size_t>(n)), largest(sum);
    k.pool_cell(x.data(), 20 * n, 15, 13, n, sum.data(), largest.data());  // 13 of each row of 20 pixels
    for (Index j = 0; j < n; ++j) {
      double cell = 0, most = -1e9;
      for (Index r = 0; r < rows; ++r) {
        const auto at = static_cast<double>(x[static_cast<std::size_t>(r * n + j)]);
        if (r % 20 < 13) cell += at, most = std::max(most, at);
      }
      const auto u = static_cast<std::size_t>(j);
      EXPECT_NEAR(static_cast<double>(sum[u]), cell, 1e-3);
      EXPECT_EQ(static_cast<double>(largest[u]), most);
    }
  }
}

TEST_P(EveryIsa, PoolCellsHandOnNotANumberAndInfinities) {
  for (const Index n : {1, 18, 64}) {
    for (const Index at : {0, 4 * 20 + 6, 14 * 20 + 12}) {  // a pixel, 20 in a row of memory
      auto x = test::random_floats(300 * n, 2);
      const auto pixel = [&](Index p, Index channel) -> float& { return x[static_cast<std::size_t>(p * n + channel)]; };
      std::vector<float> plain(static_cast<std::size_t>(n)), sum(plain), largest(plain);
      k.pool_cell(x.data(), 20 * n, 15, 13, n, nullptr, plain.data());
      pixel(at, n - 1) = std::numeric_limits<float>::quiet_NaN();
      if (n > 1) pixel(at, 0) = inf, pixel(21, 0) = -inf;  // whose sum is none either
      k.pool_cell(x.data(), 20 * n, 15, 13, n, sum.data(), largest.data());
      EXPECT_TRUE(std::isnan(largest.back()) && std::isnan(sum.back()));
      for (std::size_t j = 0; j + 1 < largest.size(); ++j) EXPECT_EQ(largest[j], j == 0 ? inf : plain[j]);
    }
  }
}

// One output of one channel, tap by tap.
float pooled(const Pool2d& p, Index y, Index x, Index channel) {
  float largest = -inf, sum = 0;
  Index taken = 0, counted = 0;
  for (Index ky = 0; ky < p.kernel_h; ++ky) {
    for (Index kx = 0; kx < p.kernel_w; ++kx) {
      const Index in_y = (p.first_row + y) * p.stride_h - p.pad_top + ky * p.dilation_h,
                  in_x = x * p.stride_w - p.pad_left + kx * p.dilation_w;
      counted += in_y < p.in_h + p.pad_bottom && in_x < p.in_w + p.pad_right;
      if (in_y < 0 || in_y >= p.in_h || in_x < 0 || in_x >= p.in_w) continue;
      const float v = p.in[(in_y * p.in_w + in_x) * p.channels + channel];
      largest = std::isnan(largest) || v <= largest ? largest : v;
      sum += v;
      ++taken;
    }
  }
  if (p.maximum) return largest;
  return sum / static_cast<float>(std::max<Index>(1, p.count_padding ? counted : taken));
}

TEST_P(EveryIsa, WindowsOfPixelsEqualPlainLoops) {
  std::mt19937 random(5);
  const auto draw = [&](int low, int high) { return Index{std::uniform_int_distribution<int>(low, high)(random)}; };
  for (int round = 0; round < 400; ++round) {
    Pool2d p;
    p.maximum = round % 2 == 0, p.count_padding = round % 4 == 1;
    p.kernel_h = draw(1, 4), p.kernel_w = draw(1, 4), p.stride_h = draw(1, 3), p.stride_w = draw(1, 3);
    p.dilation_h = draw(1, 2), p.dilation_w = draw(1, 2);
    p.pad_top = draw(0, 2), p.pad_left = draw(0, 2), p.pad_bottom = draw(0, 2), p.pad_right = draw(0, 2);
    p.channels = draw(1, 70), p.in_h = draw(1, 9), p.in_w = draw(1, 12);
    // As many as there are, or one that reaches past the padding (ceil_mode).
    p.out_h = draw(1, 8), p.out_w = draw(1, 12);
    p.first_row = round % 3;
    auto in = test::random_floats(p.in_h * p.in_w * p.channels, static_cast<unsigned>(round));
    if (round % 5 == 0) in[in.size() / 2] = nan;
    std::vector<float> out(static_cast<std::size_t>(p.out_h * p.out_w * p.channels) + 1, 7.0f);
    p.in = in.data(), p.out = out.data();
    k.pool2d(p);
    for (Index y = 0; y < p.out_h; ++y) {
      for (Index x = 0; x < p.out_w; ++x) {
        for (Index c = 0; c < p.channels; ++c) {
          const float got = out[static_cast<std::size_t>((y * p.out_w + x) * p.channels + c)],
                      expected = pooled(p, y, x, c);
          if (std::isnan(expected)) {
            ASSERT_TRUE(std::isnan(got)) << round;
          } else if (std::isinf(expected)) {
            ASSERT_EQ(got, expected) << round;
          } else {
            ASSERT_NEAR(got, expected, 1e-5f) << "round " << round << ", " << y << ' ' << x << ' ' << c;
          }
        }
      }
    }
    ASSERT_EQ(out.back(), 7.0f) << round;
  }
}

// In double.
double depthwise_sum(const Depthwise& d, Index y, Index x, Index channel) {
  double sum = d.bias ? static_cast<double>(d.bias[channel]) : 0;
  for (Index ky = 0; ky < d.kernel_h; ++ky) {
    for (Index kx = 0; kx < d.kernel_w; ++kx) {
      const Index in_y = (d.first_row + y) * d.stride_h - d.pad_top + ky * d.dilation_h,
                  in_x = x * d.stride_w - d.pad_left + kx * d.dilation_w;
      if (in_y < 0 || in_y >= d.in_h || in_x < 0 || in_x >= d.in_w) continue;
      sum += static_cast<double>(d.in[(in_y * d.in_w + in_x) * d.channels + channel]) *
             static_cast<double>(d.weights[(ky * d.kernel_w + kx) * d.channels + channel]);
    }
  }
  return sum;
}

double activated(Unary f, double x) {
  if (f == Unary::relu) return std::max(x, 0.0);
  if (f == Unary::clip) return std::clamp(x, -0.25, 0.75);
  if (f == Unary::silu) return x / (1 + std::exp(-x));
  return f == Unary::tanh ? std::tanh(x) : x;
}

// Mostly the squares of 3 and 5 that have kernels of their own, also with more padding than those take, narrower than
// their tiles and with fewer channels than a vector has; bands of rows, pointers that are aligned to nothing.
TEST_P(EveryIsa, DepthwiseEqualsPlainLoops) {
  std::mt19937 random(7);
  const auto draw = [&](int low, int high) { return Index{std::uniform_int_distribution<int>(low, high)(random)}; };
  static constexpr std::array activations{Unary::identity, Unary::relu, Unary::clip, Unary::silu, Unary::tanh};
  for (int round = 0; round < 600; ++round) {
    Depthwise d;
    const bool is_square = round % 4 != 3;
    d.kernel_h = is_square ? 3 + round % 2 * 2 : draw(1, 5), d.kernel_w = is_square ? d.kernel_h : draw(1, 5);
    d.stride_h = is_square ? draw(1, 2) : draw(1, 3), d.stride_w = is_square ? d.stride_h : draw(1, 3);
    d.dilation_h = is_square ? 1 : draw(1, 2), d.dilation_w = is_square ? 1 : draw(1, 2);
    d.pad_top = draw(0, 3), d.pad_left = draw(0, round % 8 == 0 ? 4 : static_cast<int>(d.kernel_w) / 2);
    d.channels = draw(1, 70), d.in_h = draw(1, 9), d.in_w = draw(1, 24);
    if (round % 50 == 0) d.kernel_h = d.kernel_w = 2, d.stride_h = d.stride_w = draw(11, 12), d.in_w = 90;
    // Up to a column more than the same padding on the right gives.
    const Index reach = (d.kernel_w - 1) * d.dilation_w + 1, room = d.in_w + 2 * d.pad_left - reach;
    d.out_h = draw(1, 8), d.out_w = (room > 0 ? room / d.stride_w : 0) + 1 + round % 2;
    d.first_row = round % 3;
    d.activation = activations[static_cast<std::size_t>(round) % activations.size()];
    d.alpha = -0.25f, d.beta = 0.75f;
    const auto seed = static_cast<unsigned>(round);
    const auto in = test::random_floats(d.in_h * d.in_w * d.channels + 1, seed),
               weights = test::random_floats(d.kernel_h * d.kernel_w * d.channels + 1, seed + 1),
               bias = test::random_floats(d.channels + 1, seed + 2);
    std::vector<float> out(static_cast<std::size_t>(d.out_h * d.out_w * d.channels) + 2, 7.0f);
    d.in = in.data() + 1, d.weights = weights.data() + 1, d.bias = round % 7 == 0 ? nullptr : bias.data() + 1;
    d.out = out.data() + 1;
    k.depthwise(d);
    for (Index y = 0; y < d.out_h; ++y) {
      for (Index x = 0; x < d.out_w; ++x) {
        for (Index c = 0; c < d.channels; ++c)
          ASSERT_NEAR(static_cast<double>(d.out[(y * d.out_w + x) * d.channels + c]),
                      activated(d.activation, depthwise_sum(d, y, x, c)), 1e-5)
              << "round " << round << ", " << y << ' ' << x << ' ' << c;
      }
    }
    ASSERT_EQ(out.front(), 7.0f) << round;
    ASSERT_EQ(out.back(), 7.0f) << round;
  }
}

TEST_P(EveryIsa, GemmWritesNothingOutside) {
  for (const Index n : {1, 5, 15, 17, 31}) {
    const Index m = 9, depth = 8, ldc = n + 3;
    const auto a = test::random_floats(m * depth, 1), b = test::random_floats(depth * n, 2);
    const auto p = packed(b, depth, n);
    std::vector<float> c(static_cast<std::size_t>(m * ldc), 42.0f);
    Gemm g;
    g.m = m, g.n = n, g.run = depth, g.a = a.data(), g.lda = depth, g.b = p.data(), g.c = c.data(), g.ldc = ldc;
    k.gemm(g);
    for (Index i = 0; i < m; ++i) {
      for (Index j = n; j < ldc; ++j) EXPECT_EQ(c[static_cast<std::size_t>(i * ldc + j)], 42.0f);
    }
  }
}

// Each number of rows that a strip can have, panels of one to four blocks, two planes, and nothing written around the
// rows.
TEST_P(EveryIsa, BlockedGemmEqualsGemm) {
  unsigned seed = 1;
  for (Index m = 1; m < 53; ++m) {
    for (const Index n : {16, 21, 48, 64, 80, 112}) {
      constexpr Index planes = 2;
      const Index depth = m % 3 == 0   ? 16
                          : m % 3 == 1 ? 35
                                       : 64,
                  rows = std::max(m, BlockedGemm::least_rows), blocks = padded_columns(n) / column_block,
                  a_block = rows * column_block, c_block = rows * column_block + 32,
                  a_plane = padded_columns(depth) / column_block * a_block, c_plane = blocks * c_block;
      std::vector<float> plain(static_cast<std::size_t>(planes * m * n)), b,
          in(static_cast<std::size_t>(planes * a_plane)), c(static_cast<std::size_t>(32 + planes * c_plane), 42.0f);
      const auto at = [&](Index i, Index j, Index block) {
        return j / column_block * block + i * column_block + j % column_block;
      };
      for (Index plane = 0; plane < planes; ++plane) {
        const auto a = test::random_floats(m * depth, ++seed);
        const auto p = packed(test::random_floats(depth * n, ++seed), depth, n);
        Gemm g;
        g.m = m, g.n = n, g.run = depth, g.a = a.data(), g.lda = depth, g.b = p.data();
        g.c = plain.data() + plane * m * n, g.ldc = n;
        k.gemm(g);
        for (Index i = 0; i < m; ++i)
          for (Index j = 0; j < depth; ++j)
            in[static_cast<std::size_t>(plane * a_plane + at(i, j, a_block))] =
                a[static_cast<std::size_t>(i * depth + j)];
        b.insert(b.end(), p.begin(), p.end());
      }
      BlockedGemm blocked;
      blocked.planes = planes, blocked.a_plane = a_plane, blocked.c_plane = c_plane;
      blocked.b_plane = static_cast<Index>(b.size()) / planes;
      blocked.m = m, blocked.n = n, blocked.k = depth;
      blocked.a = in.data(), blocked.a_block = a_block, blocked.b = b.data(), blocked.c = c.data() + 32,
      blocked.c_block = c_block;
      k.blocked_gemm(blocked);
      for (Index i = 0; i < 32; ++i) ASSERT_EQ(c[static_cast<std::size_t>(i)], 42.0f) << m << "x" << n;
      for (Index plane = 0; plane < planes; ++plane) {
        const float* own = c.data() + 32 + plane * c_plane;
        for (Index i = 0; i < m; ++i)
          for (Index j = 0; j < n; ++j)
            ASSERT_EQ(own[at(i, j, c_block)], plain[static_cast<std::size_t>((plane * m + i) * n + j)])
                << m << "x" << n << "x" << depth;
        for (Index block = 0; block < blocks; ++block)
          for (Index i = rows * column_block; i < c_block; ++i)
            ASSERT_EQ(own[block * c_block + i], 42.0f) << m << "x" << n;
      }
    }
  }
}

TEST_P(EveryIsa, GemmReadsIndirectRowsAndZeros) {
  const Index m = 20, n = 18, taps = 3, run = 5;
  const auto a = test::random_floats(200, 1), b = test::random_floats(taps * run * n, 2);
  const auto p = packed(b, taps * run, n);
  const std::vector<float> zeros(32, 0.0f);
  std::vector<std::int32_t> offsets;
  std::vector<float> rows;
  for (Index i = 0; i < m * taps; ++i) {
    const std::int32_t o = i % 7 == 3 ? -1 : static_cast<std::int32_t>((i * 31) % 190);
    offsets.push_back(o);
    for (Index r = 0; r < run; ++r) rows.push_back(o < 0 ? 0.0f : a[static_cast<std::size_t>(o + r)]);
  }
  std::vector<float> c(static_cast<std::size_t>(m * n));
  Gemm g;
  g.m = m, g.n = n, g.taps = taps, g.run = run, g.a = a.data(), g.offsets = offsets.data(), g.zeros = zeros.data(),
  g.b = p.data(), g.c = c.data(), g.ldc = n;
  k.gemm(g);
  EXPECT_LT(test::relative_error(c, test::matmul(rows, b, m, n, taps * run)), 1e-6);
}

struct UnaryCase {
  Unary f;
  double (*reference)(double);
  double tolerance;  // relative to max(1, |y|), or absolute below 1
  float low, high;
};

TEST_P(EveryIsa, ElementaryFunctionsHaveKnownErrors) {
  const UnaryCase cases[] = {
      {Unary::exp, [](double x) { return std::exp(x); }, 3e-7, -87, 88},
      {Unary::sigmoid, [](double x) { return 1 / (1 + std::exp(-x)); }, 3e-7, -80, 80},
      {Unary::tanh, [](double x) { return std::tanh(x); }, 3e-7, -20, 20},
      {Unary::erf, [](double x) { return std::erf(x); }, 5e-7, -6, 6},
      {Unary::gelu, [](double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }, 8e-7, -10, 10},
      {Unary::silu, [](double x) { return x / (1 + std::exp(-x)); }, 4e-7, -40, 40},
      {Unary::hard_swish, [](double x) { return x * std::clamp(x / 6 + 0.5, 0.0, 1.0); }, 3e-7, -9, 9},
      {Unary::relu, [](double x) { return std::max(0.0, x); }, 0, -9, 9},
      {Unary::abs, [](double x) { return std::fabs(x); }, 0, -9, 9},
      {Unary::neg, [](double x) { return -x; }, 0, -9, 9},
      {Unary::sqrt, [](double x) { return std::sqrt(x); }, 1e-7, 0, 90},
      {Unary::reciprocal, [](double x) { return 1 / x; }, 1e-7, 0.01f, 90},
  };
  for (const UnaryCase& c : cases) {
    const Index n = 20011;
    std::vector<float> x, y(static_cast<std::size_t>(n));
    for (Index i = 0; i < n; ++i)
      x.push_back(c.low + (c.high - c.low) * static_cast<float>(i) / static_cast<float>(n - 1));
    k.unary(c.f, x.data(), y.data(), n, 0, 0);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double expected = c.reference(static_cast<double>(x[i]));
      ASSERT_LE(std::fabs(static_cast<double>(y[i]) - expected), c.tolerance * std::max(1.0, std::fabs(expected)))
          << static_cast<int>(c.f) << " at " << x[i];
    }
  }
}

TEST_P(EveryIsa, FunctionsTreatTheEndsOfTheRange) {
  const std::vector<float> x{inf, -inf, nan, 200.0f, -200.0f};
  std::vector<float> y(5);
  k.unary(Unary::exp, x.data(), y.data(), 5, 0, 0);
  EXPECT_EQ(y[0], inf);
  EXPECT_EQ(y[1], 0.0f);
  EXPECT_TRUE(std::isnan(y[2]));
  EXPECT_EQ(y[3], inf);
  EXPECT_EQ(y[4], 0.0f);
  for (const Unary f : {Unary::relu, Unary::sigmoid, Unary::tanh, Unary::gelu, Unary::silu, Unary::leaky_relu,
                        Unary::clip, Unary::hard_swish}) {
    k.unary(f, x.data(), y.data(), 5, 0.1f, 6.0f);
    EXPECT_TRUE(std::isnan(y[2])) << static_cast<int>(f) << " must hand a NaN on";
  }
  for (const Unary f : {Unary::tanh, Unary::erf}) {
    k.unary(f, x.data(), y.data(), 5, 0, 0);
    EXPECT_EQ(y[0], 1.0f);
    EXPECT_EQ(y[1], -1.0f);
    EXPECT_TRUE(std::isnan(y[2]));
    EXPECT_EQ(y[3], 1.0f);
    EXPECT_EQ(y[4], -1.0f);
  }
  k.unary(Unary::gelu, x.data(), y.data(), 5, 0, 0);
  EXPECT_EQ(y[3], 200.0f);
  EXPECT_EQ(y[4], 0.0f);
}

TEST_P(EveryIsa, BinaryWithEveryStep) {
  for (const Index n : {1, 3, 16, 37}) {
    const auto a = test::random_floats(n, 1), b = test::random_floats(n, 2, 0.5f, 2.0f);
    for (const Index sa : {0, 1}) {
      for (const Index sb : {0, 1}) {
        std::vector<float> y(static_cast<std::size_t>(n));
        const auto check = [&](Binary f, auto&& reference) {
          k.binary(f, a.data(), sa, b.data(), sb, y.data(), n);
          for (Index i = 0; i < n; ++i)
            EXPECT_FLOAT_EQ(y[static_cast<std::size_t>(i)],
                            reference(a[static_cast<std::size_t>(i * sa)], b[static_cast<std::size_t>(i * sb)]));
        };
        check(Binary::add, [](float p, float q) { return p + q; });
        check(Binary::sub, [](float p, float q) { return p - q; });
        check(Binary::mul, [](float p, float q) { return p * q; });
        check(Binary::div, [](float p, float q) { return p / q; });
        check(Binary::max, [](float p, float q) { return std::max(p, q); });
        check(Binary::min, [](float p, float q) { return std::min(p, q); });
        check(Binary::prelu, [](float p, float q) { return p < 0 ? p * q : p; });
      }
    }
  }
}

TEST_P(EveryIsa, SoftmaxAndItsLogarithm) {
  for (const Index n : {1, 2, 10, 16, 100}) {
    auto x = test::random_floats(3 * n, 5, -30, 30);
    std::vector<float> y(x.size()), l(x.size());
    k.softmax(x.data(), y.data(), 3, n, false);
    k.softmax(x.data(), l.data(), 3, n, true);
    for (Index r = 0; r < 3; ++r) {
      double sum = 0, largest = -1e30;
      for (Index i = 0; i < n; ++i)
        largest = std::max(largest, static_cast<double>(x[static_cast<std::size_t>(r * n + i)]));
      for (Index i = 0; i < n; ++i)
        sum += std::exp(static_cast<double>(x[static_cast<std::size_t>(r * n + i)]) - largest);
      for (Index i = 0; i < n; ++i) {
        const auto u = static_cast<std::size_t>(r * n + i);
        EXPECT_NEAR(static_cast<double>(y[u]), std::exp(static_cast<double>(x[u]) - largest) / sum, 1e-6);
        EXPECT_NEAR(static_cast<double>(l[u]), static_cast<double>(x[u]) - largest - std::log(sum), 1e-5);
      }
    }
  }
}

TEST_P(EveryIsa, InterleavesPlanes) {
  for (const Index channels : {1, 2, 3, 4, 5}) {
    for (const Index n : {1, 3, 4, 7, 8, 15, 16, 17, 31, 48, 63}) {
      const Index plane = n + 5;
      const auto x = test::random_floats(channels * plane + 1, 6);
      std::vector<float> y(static_cast<std::size_t>(channels * n + 2), 7.0f);
      k.interleave(x.data() + 1, plane, channels, y.data() + 1, n);  // unaligned
      EXPECT_EQ(y.front(), 7.0f);
      EXPECT_EQ(y.back(), 7.0f);
      for (Index i = 0; i < n; ++i) {
        for (Index c = 0; c < channels; ++c)
          ASSERT_EQ(y[static_cast<std::size_t>(1 + i * channels + c)], x[static_cast<std::size_t>(1 + c * plane + i)]);
      }
    }
  }
}

TEST_P(EveryIsa, LayerNormAndSums) {
  for (const Index n : {1, 5, 16, 50}) {
    const auto x = test::random_floats(4 * n, 6), scale = test::random_floats(n, 7), bias = test::random_floats(n, 8);
    std::vector<float> y(x.size()), sums(static_cast<std::size_t>(n));
    k.layer_norm(x.data(), y.data(), 4, n, 1e-5f, scale.data(), bias.data());
    k.sum_rows(x.data(), sums.data(), 4, n, 0.25f);
    for (Index r = 0; r < 4; ++r) {
      double mean = 0, variance = 0;
      for (Index i = 0; i < n; ++i)
        mean += static_cast<double>(x[static_cast<std::size_t>(r * n + i)]) / static_cast<double>(n);
      for (Index i = 0; i < n; ++i)
        variance +=
            std::pow(static_cast<double>(x[static_cast<std::size_t>(r * n + i)]) - mean, 2) / static_cast<double>(n);
      for (Index i = 0; i < n; ++i) {
        const auto u = static_cast<std::size_t>(i), v = static_cast<std::size_t>(r * n + i);
        EXPECT_NEAR(static_cast<double>(y[v]),
                    (static_cast<double>(x[v]) - mean) / std::sqrt(variance + 1e-5) * static_cast<double>(scale[u]) +
                        static_cast<double>(bias[u]),
                    2e-5);
      }
      EXPECT_NEAR(static_cast<double>(k.sum(x.data() + r * n, n)), mean * static_cast<double>(n), 1e-5);
    }
    for (Index i = 0; i < n; ++i) {
      double sum = 0;
      for (Index r = 0; r < 4; ++r) sum += static_cast<double>(x[static_cast<std::size_t>(r * n + i)]);
      EXPECT_NEAR(static_cast<double>(sums[static_cast<std::size_t>(i)]), sum / 4, 1e-6);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, EveryIsa, ::testing::ValuesIn(available_isas().begin(), available_isas().end()),
                         [](const auto& p) { return std::string(name_of(p.param)); });

TEST(Isa, ListsWhatIsHere) {
  EXPECT_EQ(available_isas().front(), Isa::baseline);
  EXPECT_EQ(available_isas().back(), best_isa());
  for (const Isa isa : available_isas()) EXPECT_GE(kernels_for(isa).lanes, 4);
}

}  // namespace
}  // namespace offramp::kernel

#include "offramp/layer/winograd_strided.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "convolutions.hpp"
#include "offramp/kernel/dispatch.hpp"
#include "offramp/layer/conv.hpp"
#include "reference.hpp"

namespace offramp {
namespace {

// Both tiles on every instruction set, odd sizes, images smaller than a tile, borders of several pixels or none, bias,
// residual and every kind of tail, alone and with three threads that share tiles or channels, in scratch memory that
// holds nothing but NaN and outputs that do, too.
TEST(WinogradStrided, EqualsSevenLoops) {
  std::mt19937 engine(3);
  const auto pick = [&](std::initializer_list<Index> from) { return *(from.begin() + engine() % from.size()); };
  ThreadPool pool(3);
  bool shares_channels = false, shares_tiles = false;
  for (int trial = 0; trial < 120; ++trial) {
    test::ConvCase c;
    c.batch = pick({1, 2, 5}), c.h = pick({1, 2, 7, 8, 15, 32}), c.w = pick({1, 3, 8, 9, 16, 31, 70});
    c.in = pick({16, 32, 48, 128}), c.out = pick({16, 48, 64});
    c.kh = c.kw = 3, c.sh = c.sw = 2;
    c.top = pick({0, 1, 2}), c.left = pick({0, 1, 3}), c.bottom = pick({0, 1, 5}), c.right = pick({0, 1, 2});
    if (trial % 20 == 19) c.batch = 2, c.h = c.w = 8, c.top = c.left = 1, c.in = 128, c.out = 32;  // tiles: two or more
    if (c.h + c.top + c.bottom < 3 || c.w + c.left + c.right < 3) continue;
    const auto seed = static_cast<unsigned>(trial);
    const auto x = test::random_floats(c.batch * c.in * c.h * c.w, 10 + seed),
               w = test::random_floats(c.out * c.in * 9, 2), b = test::random_floats(c.out, 3);
    auto expected = test::conv2d(c, x, w, b);
    const auto outputs = static_cast<Index>(expected.size()), pixels = c.out_h() * c.out_w();
    const auto residual = test::random_floats(outputs, 4);
    const bool has_residual = trial % 5 < 2, has_bias = trial % 7 != 0;
    const int kind = trial % 4;
    double scale = 0;  // of the sums: a tail may cut the outputs down
    for (Index i = 0; i < outputs; ++i) {
      double& v = expected[static_cast<std::size_t>(i)];
      if (!has_bias) v -= static_cast<double>(b[static_cast<std::size_t>(i / pixels % c.out)]);
      scale = std::max(scale, std::fabs(v));
      if (has_residual) v += static_cast<double>(residual[static_cast<std::size_t>(i)]);
      v = test::after_tail(kind, v);
    }
    const auto in = test::transposed(x, c.batch, c.in, c.h * c.w),
               extra = test::transposed(residual, c.batch, c.out, pixels);
    for (const Index m : {2, 4}) {
      const WinogradStridedPlan plan(test::window_of(c), c.in, c.out, m, w.data());
      for (const Isa isa : available_isas()) {
        std::vector<float> alone;
        for (const bool threaded : {false, true}) {
          std::vector<float> out(static_cast<std::size_t>(outputs) + 1, NAN);  // one more, which is not written
          const std::size_t size = plan.scratch_bytes(c.batch, threaded ? 3 : 1);
          const auto scratch = allocate_aligned(size);
          std::memset(scratch.get(), 0xff, size);
          plan.forward(in.data(), has_bias ? b.data() : nullptr, has_residual ? extra.data() : nullptr, out.data(),
                       c.batch, test::tail_of(kind), scratch.get(), kernel::kernels_for(isa),
                       threaded ? ExecutorRef(pool) : ExecutorRef(),
                       threaded ? std::as_bytes(std::span(w)) : std::span<const std::byte>());
          ASSERT_TRUE(std::isnan(out.back())) << c.text();
          out.pop_back();
          const auto y = test::transposed(out, c.batch, pixels, c.out);
          for (std::size_t i = 0; i < y.size(); ++i)
            ASSERT_LT(std::fabs(static_cast<double>(y[i]) - expected[i]), 1e-5 * std::max(scale, 1.0))
                << c.text() << ' ' << plan.text() << " on " << name_of(isa) << ", element " << i;
          if (threaded) {
            ASSERT_EQ(out, alone);
          }
          alone = out;
        }
      }
      (plan.shares_channels(c.batch, 3) ? shares_channels : shares_tiles) = true;
    }
  }
  EXPECT_TRUE(shares_channels && shares_tiles);
}

// A NaN stays in its image and in the tile that meets it.
TEST(WinogradStrided, NaNStaysNearby) {
  test::ConvCase c;
  c.batch = 2, c.in = c.out = 16, c.h = c.w = 32, c.kh = c.kw = 3, c.sh = c.sw = 2;
  c.top = c.left = c.bottom = c.right = 1;
  const auto w = test::random_floats(c.out * c.in * 9, 2);
  auto x = test::random_floats(c.batch * c.h * c.w * c.in, 1);
  x[static_cast<std::size_t>(((c.h + 12) * c.w + 20) * c.in + 3)] = NAN;  // of the second image, for output (6, 10)
  const WinogradStridedPlan plan(test::window_of(c), c.in, c.out, 4, w.data());
  for (const Isa isa : available_isas()) {
    const Index side = c.out_h();
    std::vector<float> out(static_cast<std::size_t>(c.batch * side * side * c.out));
    const auto scratch = allocate_aligned(plan.scratch_bytes(c.batch, 1));
    plan.forward(x.data(), nullptr, nullptr, out.data(), c.batch, {}, scratch.get(), kernel::kernels_for(isa), {});
    for (Index i = 0; i < c.batch * side * side; ++i) {
      const Index image = i / (side * side), y = i / side % side, column = i % side;
      const bool may_be = image == 1 && y / 4 == 1 && column / 4 == 2, is_hit = image == 1 && y == 6 && column == 10;
      for (Index o = 0; o < c.out; ++o) {
        const bool is_nan = std::isnan(out[static_cast<std::size_t>(i * c.out + o)]);
        ASSERT_TRUE(is_nan ? may_be : !is_hit) << name_of(isa) << ' ' << image << ' ' << y << ' ' << column;
      }
    }
  }
}

// A state made for a large batch has room for every smaller one, and an empty batch is none.
TEST(WinogradStrided, SmallerBatchesNeedNoMoreScratch) {
  test::ConvCase c;
  c.in = 64, c.out = 128, c.h = c.w = 56, c.kh = c.kw = 3, c.sh = c.sw = 2, c.top = c.left = 1;
  const auto w = test::random_floats(c.out * c.in * 9, 2);
  ThreadPool pool(2);
  for (const Index m : {2, 4}) {
    const WinogradStridedPlan plan(test::window_of(c), c.in, c.out, m, w.data());
    for (const Index threads : {1, 2, 5}) {
      for (Index batch = 1; batch < 9; ++batch)
        EXPECT_LE(plan.scratch_bytes(batch, threads), plan.scratch_bytes(batch + 1, threads));
    }
    plan.forward(nullptr, nullptr, nullptr, nullptr, 0, {}, nullptr, kernel::kernels_for(best_isa()),
                 ExecutorRef(pool));
  }
}

// Taken where it was measured to pay, as far as tiles may go, and never for what it cannot do.
TEST(WinogradStrided, IsChosenWhereItPays) {
  const auto text = [](Index side, Index in, Index out, Index batch, Index stride, Index most, Isa isa) {
    test::ConvCase c;
    c.in = in, c.out = out, c.h = c.w = side, c.kh = c.kw = 3, c.sh = c.sw = stride;
    c.top = c.left = c.bottom = c.right = 1;
    const auto w = test::random_floats(out * in * 9, 2);
    PrepareOptions options{kernel::kernels_for(isa)};
    options.batch = batch, options.winograd_tile = most;
    return ConvPlan(test::window_of(c), in, out, 1, w.data(), nullptr, {}, options).algorithm();
  };
  const std::string small = "winograd F(2x2,3x3) stride 2", large = "winograd F(4x4,3x3) stride 2",
                    direct = "indirect gemm";
  for (const Isa isa : available_isas()) {
    EXPECT_EQ(text(56, 64, 128, 1, 2, 6, isa), large) << name_of(isa);
    EXPECT_EQ(text(56, 64, 128, 1, 2, 2, isa), small);
    EXPECT_EQ(text(56, 64, 128, 1, 2, 0, isa), direct);
    EXPECT_EQ(text(28, 128, 256, 1, 2, 6, isa), small);
    EXPECT_EQ(text(14, 256, 512, 1, 2, 6, isa), direct) << name_of(isa);
    EXPECT_EQ(text(16, 32, 64, 8, 2, 6, isa), large);
    EXPECT_EQ(text(56, 72, 128, 8, 2, 6, isa), direct);
    EXPECT_EQ(text(56, 64, 120, 8, 2, 6, isa), direct);
    EXPECT_EQ(text(56, 64, 64, 1, 3, 6, isa), direct);
  }
}

}  // namespace
}  // namespace offramp

#include "offramp/layer/winograd_rows.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "convolutions.hpp"
#include "offramp/kernel/dispatch.hpp"
#include "offramp/kernel/pack.hpp"
#include "offramp/layer/conv.hpp"
#include "reference.hpp"

namespace offramp {
namespace {

// The images with what stands around them.
std::vector<float> padded(const test::ConvCase& c, std::span<const float> x, std::span<const float> padding) {
  std::vector<float> y;
  for (Index i = 0; i < c.batch * c.in; ++i) {
    for (Index h = -c.top; h < c.h + c.bottom; ++h) {
      for (Index w = -c.left; w < c.w + c.right; ++w) {
        const bool inside = h >= 0 && h < c.h && w >= 0 && w < c.w;
        y.push_back(inside ? x[static_cast<std::size_t>((i * c.h + h) * c.w + w)]
                           : padding[static_cast<std::size_t>(i % c.in)]);
      }
    }
  }
  return y;
}

// Odd sizes, borders of several pixels, paddings of other numbers than zero, bias, residual and every kind of tail, on
// every instruction set, alone and with three threads, in scratch memory that holds nothing but NaN.
TEST(WinogradRows, EqualsSevenLoops) {
  std::mt19937 engine(3);
  const auto pick = [&](std::initializer_list<Index> from) { return *(from.begin() + engine() % from.size()); };
  ThreadPool pool(3);
  for (int trial = 0; trial < 120; ++trial) {
    test::ConvCase c;
    c.batch = pick({1, 2, 3}), c.h = pick({1, 3, 8, 14, 33}), c.w = pick({1, 7, 16, 31, 34, 70});
    c.in = pick({1, 2, 3, 4}), c.out = pick({1, 5, 8, 16, 21, 48});
    c.kh = c.kw = 3, c.top = pick({0, 1, 2}), c.left = pick({0, 1, 3}), c.bottom = pick({0, 1, 5}),
    c.right = pick({0, 1, 2});
    if (c.out_h() < 1 || c.out_w() < 1) continue;
    const auto seed = static_cast<unsigned>(trial);
    const auto x = test::random_floats(c.batch * c.in * c.h * c.w, 10 + seed),
               w = test::random_floats(c.out * c.in * 9, 2), b = test::random_floats(kernel::padded_columns(c.out), 3),
               padding = test::random_floats(c.in, 5 + seed);
    const bool has_padding = trial % 3 != 0, has_residual = trial % 5 < 2;
    test::ConvCase whole = c;
    whole.h += c.top + c.bottom, whole.w += c.left + c.right;
    whole.top = whole.bottom = whole.left = whole.right = 0;
    auto expected = test::conv2d(whole, padded(c, x, has_padding ? padding : std::vector<float>(padding.size(), 0.0f)),
                                 w, std::span(b).first(static_cast<std::size_t>(c.out)));
    const auto outputs = static_cast<Index>(expected.size()), pixels = c.out_h() * c.out_w();
    const auto residual = test::random_floats(outputs, 4);
    const int kind = trial % 4;
    const FusedTail tail = test::tail_of(kind);
    double scale = 0;  // of the sums: a tail may cut the outputs down
    for (Index i = 0; i < outputs; ++i) {
      double& v = expected[static_cast<std::size_t>(i)];
      scale = std::max(scale, std::fabs(v));
      const Index image = i / (c.out * pixels), channel = i / pixels % c.out, pixel = i % pixels;
      if (has_residual)
        v += static_cast<double>(residual[static_cast<std::size_t>((image * pixels + pixel) * c.out + channel)]);
      v = test::after_tail(kind, v);
    }
    const WinogradRowsPlan plan(test::window_of(c), c.in, c.out, w.data(),
                                has_padding ? std::span<const float>(padding) : std::span<const float>());
    for (const Isa isa : available_isas()) {
      std::vector<float> alone;
      for (const bool threaded : {false, true}) {
        std::vector<float> out(static_cast<std::size_t>(outputs), NAN), y(out.size());
        const std::size_t size = plan.scratch_bytes(threaded ? 3 : 1);
        const auto scratch = allocate_aligned(size);
        std::memset(scratch.get(), 0xff, size);
        plan.forward(x.data(), b.data(), has_residual ? residual.data() : nullptr, out.data(), c.batch, tail,
                     scratch.get(), kernel::kernels_for(isa), threaded ? ExecutorRef(pool) : ExecutorRef());
        for (Index i = 0; i < c.batch; ++i)
          kernel::transpose(out.data() + i * pixels * c.out, pixels, c.out, y.data() + i * pixels * c.out);
        for (std::size_t i = 0; i < y.size(); ++i)
          ASSERT_LT(std::fabs(static_cast<double>(y[i]) - expected[i]), 1e-5 * std::max(scale, 1.0))
              << c.text() << " on " << name_of(isa) << ", element " << i;
        if (threaded) {
          ASSERT_EQ(out, alone);
        }
        alone = out;
      }
    }
  }
}

// A NaN stays in its image, and within the rows and columns that meet it.
TEST(WinogradRows, NaNStaysNearby) {
  test::ConvCase c;
  c.batch = 2, c.in = 3, c.out = 16, c.h = c.w = 20, c.kh = c.kw = 3, c.top = c.left = c.bottom = c.right = 1;
  auto x = test::random_floats(c.batch * c.in * c.h * c.w, 1);
  const auto w = test::random_floats(c.out * c.in * 9, 2);
  x[static_cast<std::size_t>((c.in + 1) * c.h * c.w + 10 * c.w + 7)] = NAN;  // of the second image
  const WinogradRowsPlan plan(test::window_of(c), c.in, c.out, w.data(), {});
  for (const Isa isa : available_isas()) {
    std::vector<float> out(static_cast<std::size_t>(c.batch * c.h * c.w * c.out));
    const auto scratch = allocate_aligned(plan.scratch_bytes(1));
    plan.forward(x.data(), nullptr, nullptr, out.data(), c.batch, {}, scratch.get(), kernel::kernels_for(isa), {});
    for (Index i = 0; i < c.batch * c.h * c.w; ++i) {
      const Index image = i / (c.h * c.w), y = i / c.w % c.h, column = i % c.w;
      const bool is_hit = image == 1 && y >= 9 && y <= 11 && column >= 6 && column <= 8,
                 may_be = image == 1 && y >= 8 && y < 12 && column >= 6 && column <= 8;
      for (Index o = 0; o < c.out; ++o) {
        const bool is_nan = std::isnan(out[static_cast<std::size_t>(i * c.out + o)]);
        ASSERT_TRUE(is_nan ? may_be : !is_hit) << name_of(isa) << ' ' << image << ' ' << y << ' ' << column;
      }
    }
  }
}

// An image of three channels goes so where it pays, and where tiles may be that large.
TEST(WinogradRows, FirstLayersTakeIt) {
  test::ConvCase c;
  c.in = 3, c.out = 16, c.h = c.w = 32, c.kh = c.kw = 3, c.top = c.left = c.bottom = c.right = 1;
  const auto w = test::random_floats(c.out * c.in * 9, 2);
  for (const Isa isa : available_isas()) {
    PrepareOptions options{kernel::kernels_for(isa)};
    const auto text = [&](Index stride) {
      c.sh = c.sw = stride;
      return ConvPlan(test::window_of(c), c.in, c.out, 1, w.data(), nullptr, {}, options, true).algorithm();
    };
    EXPECT_EQ(text(1), "winograd F(4x1,3x3)") << name_of(isa);
    EXPECT_EQ(text(2), "row gemm");
    options.winograd_tile = 2;
    EXPECT_EQ(text(1), "row gemm");
  }
}

}  // namespace
}  // namespace offramp

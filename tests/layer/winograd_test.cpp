#include "offramp/layer/winograd.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>
#include <vector>

#include "convolutions.hpp"
#include "graphs.hpp"
#include "offramp/graph/model.hpp"
#include "offramp/kernel/dispatch.hpp"
#include "reference.hpp"

namespace offramp {
namespace {

// Every tile size on every instruction set, in float32 and bfloat16, alone and with three threads, with odd sizes,
// borders, bias, residual and every kind of tail. The last trials are of 16 channels and whole tiles, which stay in L1.
TEST(Winograd, EqualsSevenLoops) {
  std::mt19937 engine(3);
  const auto pick = [&](std::initializer_list<Index> from) { return *(from.begin() + engine() % from.size()); };
  ThreadPool pool(3);
  for (int trial = 0; trial < 90; ++trial) {
    test::ConvCase c;
    c.batch = pick({1, 2, 5}), c.h = pick({1, 3, 7, 8, 13}), c.w = pick({2, 6, 9, 20, 40});
    c.in = pick({1, 8, 16, 19, 40, 70, 128}), c.out = pick({3, 16, 21, 48});
    c.kh = c.kw = 3, c.top = pick({0, 1, 2}), c.left = pick({1, 2}), c.bottom = pick({1, 2}), c.right = pick({0, 1});
    if (trial >= 60) {
      c.in = c.out = 16;
      c.top = pick({0, 1}), c.left = pick({0, 1}), c.bottom = pick({0, 1}), c.right = pick({0, 1});
      c.h = pick({4, 8, 16, 20}) + 2 - c.top - c.bottom, c.w = pick({4, 12, 36, 68}) + 2 - c.left - c.right;
    }
    if (c.out_h() < 1 || c.out_w() < 1) continue;
    const auto x = test::random_floats(c.batch * c.in * c.h * c.w, 10 + static_cast<unsigned>(trial)),
               w = test::random_floats(c.out * c.in * 9, 2), b = test::random_floats(kernel::padded_columns(c.out), 3);
    const Index outputs = c.batch * c.out * c.out_h() * c.out_w();
    const auto residual = test::random_floats(outputs, 4);
    auto expected = test::conv2d(c, x, w, std::span(b).first(static_cast<std::size_t>(c.out)));
    const int kind = trial % 4;
    const FusedTail tail = test::tail_of(kind);
    double scale = 0;  // of the sums: a tail may cut the outputs down
    for (std::size_t i = 0; i < expected.size(); ++i) {
      double& v = expected[i];
      scale = std::max(scale, std::fabs(v));
      v += static_cast<double>(residual[i]);
      v = test::after_tail(kind, v);
    }
    const Window window = test::window_of(c);
    const auto in = test::transposed(x, c.batch, c.in, c.h * c.w),
               extra = test::transposed(residual, c.batch, c.out, c.out_h() * c.out_w());
    for (const ConvMethod& method : {ConvMethod{2}, {4}, {6}, {2, true}, {4, true}, {4, false, true}}) {
      const double tolerance = method.halves ? (method.m == 4 ? 0.12 : 0.02) : method.m == 6 ? 4e-5 : 1e-5;
      for (const Isa isa : available_isas()) {
        if (method.m > kernel::kernels_for(isa).winograd_tile) continue;
        if (method.halves && !kernel::kernels_for(isa).bf16) continue;
        if (method.plain_weights && !kernel::kernels_for(isa).winograd_products) continue;
        std::vector<float> alone;
        for (const bool threaded : {false, true}) {
          const WinogradPlan plan(window, c.in, c.out, method, w.data());
          std::vector<float> out(static_cast<std::size_t>(outputs), NAN), y;
          const auto scratch = allocate_aligned(plan.scratch_bytes(c.batch, threaded ? 3 : 1));
          plan.forward(in.data(), b.data(), extra.data(), out.data(), c.batch, tail, scratch.get(),
                       kernel::kernels_for(isa), threaded ? ExecutorRef(pool) : ExecutorRef(),
                       threaded ? std::as_bytes(std::span(w)) : std::span<const std::byte>());
          for (Index i = 0; i < c.batch; ++i) {
            std::vector<float> image(static_cast<std::size_t>(outputs / c.batch));
            kernel::transpose(out.data() + i * outputs / c.batch, c.out_h() * c.out_w(), c.out, image.data());
            y.insert(y.end(), image.begin(), image.end());
          }
          ASSERT_EQ(y.size(), expected.size());
          for (std::size_t i = 0; i < y.size(); ++i) {
            ASSERT_LT(std::fabs(static_cast<double>(y[i]) - expected[i]), tolerance * scale)
                << c.text() << " " << plan.text();
          }
          if (threaded) {
            ASSERT_EQ(y, alone);
          }
          alone = y;
        }
      }
    }
  }
}

// Windows of 2 x 2 behind the tail, in registers or behind a copy of the tile: sizes that leave a row or a column out,
// tiles at every edge, channels that fill no vector.
TEST(Winograd, PoolsWhatItWrites) {
  std::mt19937 engine(5);
  const auto pick = [&](std::initializer_list<Index> from) { return *(from.begin() + engine() % from.size()); };
  ThreadPool pool(3);
  for (int trial = 0; trial < 64; ++trial) {
    test::ConvCase c;
    c.batch = pick({1, 3}), c.h = pick({2, 5, 8, 13}), c.w = pick({3, 6, 9, 20});
    c.in = pick({1, 16, 19}), c.out = pick({3, 16, 21, 48});
    c.kh = c.kw = 3, c.top = c.left = c.right = 1, c.bottom = pick({0, 1, 2});
    if (c.out_h() < 2 || c.out_w() < 2) continue;
    const auto x = test::random_floats(c.batch * c.in * c.h * c.w, 10 + static_cast<unsigned>(trial)),
               w = test::random_floats(c.out * c.in * 9, 2), b = test::random_floats(kernel::padded_columns(c.out), 3);
    const auto sums = test::conv2d(c, x, w, std::span(b).first(static_cast<std::size_t>(c.out)));
    const int kind = trial % 4;
    FusedTail tail = test::tail_of(kind);
    tail.pooling = trial / 4 % 2 == 0 ? kernel::Pooling::maximum : kernel::Pooling::average;
    const Index rows = c.out_h() / 2, columns = c.out_w() / 2, planes = c.batch * c.out;
    std::vector<double> expected;
    for (Index i = 0; i < planes * rows * columns; ++i) {
      const Index at = (i / columns / rows * c.out_h() + i / columns % rows * 2) * c.out_w() + i % columns * 2;
      double largest = -INFINITY, sum = 0;
      for (const Index k : {Index{0}, Index{1}, c.out_w(), c.out_w() + 1}) {
        const double v = test::after_tail(kind, sums[static_cast<std::size_t>(at + k)]);
        largest = std::max(largest, v), sum += v;
      }
      expected.push_back(tail.pooling == kernel::Pooling::maximum ? largest : sum / 4);
    }
    const auto in = test::transposed(x, c.batch, c.in, c.h * c.w);
    const double scale = std::fabs(*std::max_element(
        sums.begin(), sums.end(), [](double a, double other) { return std::fabs(a) < std::fabs(other); }));
    for (const ConvMethod& method : {ConvMethod{2}, {4}, {6}, {4, false, true}}) {
      for (const Isa isa : available_isas()) {
        const kernel::Kernels& kernels = kernel::kernels_for(isa);
        if (method.m > kernels.winograd_tile || (method.plain_weights && !kernels.winograd_products)) continue;
        for (const bool threaded : {false, true}) {
          const WinogradPlan plan(test::window_of(c), c.in, c.out, method, w.data());
          std::vector<float> out(expected.size() + 1, NAN);  // one more, which is not written
          const auto scratch = allocate_aligned(plan.scratch_bytes(c.batch, threaded ? 3 : 1));
          plan.forward(in.data(), b.data(), nullptr, out.data(), c.batch, tail, scratch.get(), kernels,
                       threaded ? ExecutorRef(pool) : ExecutorRef());
          const Index pixels = rows * columns;
          for (std::size_t i = 0; i < expected.size(); ++i) {
            const auto u = static_cast<Index>(i);
            const Index image = u / (c.out * pixels), channel = u / pixels % c.out, pixel = u % pixels;
            const float y = out[static_cast<std::size_t>((image * pixels + pixel) * c.out + channel)];
            ASSERT_LT(std::fabs(static_cast<double>(y) - expected[i]), 4e-5 * scale)
                << c.text() << " " << plan.text() << " " << name_of(isa) << " tail " << kind;
          }
          ASSERT_TRUE(std::isnan(out.back())) << c.text() << " " << plan.text();
        }
      }
    }
  }
}

// Many tiles are shared among threads, else output channels; no thread's part changes a result.
TEST(Winograd, ThreadsShareTilesOrChannels) {
  struct Case {
    Index size, in, out;
    ConvMethod method;
    Index threads, of_tiles, of_channels;
  };
  for (const Case& c : {Case{40, 64, 64, {4}, 2, 2, 1},
                        {7, 512, 250, {4, false, true}, 2, 1, 2},
                        {7, 512, 250, {2}, 3, 1, 3},
                        {20, 512, 512, {2}, 4, 2, 2},
                        {9, 256, 512, {2, true}, 2, 1, 2},
                        {8, 16, 16, {4}, 2, 1, 1}}) {
    Window window;
    window.in = window.out = {1, c.size, c.size}, window.kernel = {1, 3, 3}, window.begin = window.end = {0, 1, 1};
    const Index pixels = c.size * c.size;
    const auto x = test::random_floats(pixels * c.in, 1), w = test::random_floats(c.out * c.in * 9, 2),
               b = test::random_floats(kernel::padded_columns(c.out), 3),
               extra = test::random_floats(pixels * c.out, 4);
    ThreadPool pool(c.threads);
    for (const Isa isa : available_isas()) {
      const kernel::Kernels& kernels = kernel::kernels_for(isa);
      if (c.method.halves && !kernels.bf16) continue;
      if (c.method.plain_weights && !kernels.winograd_products) continue;
      const WinogradPlan plan(window, c.in, c.out, c.method, w.data(), kernels.lanes);
      if (kernels.lanes == 16) {
        EXPECT_EQ(plan.parts(1, c.threads).of_tiles, c.of_tiles) << c.size << ' ' << plan.text();
        EXPECT_EQ(plan.parts(1, c.threads).of_channels, c.of_channels) << c.size << ' ' << plan.text();
      }
      for (const auto activation : {kernel::Unary::relu, kernel::Unary::abs}) {
        FusedTail tail;
        tail.activation = activation;
        std::vector<float> out[2];
        for (const bool threaded : {false, true}) {
          out[threaded].assign(static_cast<std::size_t>(pixels * c.out), NAN);
          const auto scratch = allocate_aligned(plan.scratch_bytes(1, threaded ? c.threads : 1));
          plan.forward(x.data(), b.data(), extra.data(), out[threaded].data(), 1, tail, scratch.get(), kernels,
                       threaded ? ExecutorRef(pool) : ExecutorRef());
        }
        EXPECT_EQ(out[0], out[1]) << c.size << ' ' << plan.text();
      }
      plan.forward(nullptr, nullptr, nullptr, nullptr, 0, {}, nullptr, kernels, ExecutorRef(pool));  // an empty batch
    }
  }
}

// Small integers stay exact through the transformations of 2 x 2 tiles.
TEST(Winograd, HalvesThatNeedNoRoundingAreExact) {
  std::mt19937 engine(5);
  for (const Isa isa : available_isas()) {
    const kernel::Kernels& kernels = kernel::kernels_for(isa);
    if (!kernels.bf16) continue;
    for (const auto& [in, out] : {std::pair<Index, Index>{16, 16}, {7, 40}, {33, 64}, {64, 5}}) {
      test::ConvCase c;
      c.batch = 2, c.h = 11, c.w = 9, c.in = in, c.out = out, c.kh = c.kw = 3;
      c.top = c.left = c.bottom = c.right = 1;
      std::vector<float> x(static_cast<std::size_t>(c.batch * in * c.h * c.w)),
          w(static_cast<std::size_t>(out * in * 9));
      for (float& v : x) v = static_cast<float>(static_cast<int>(engine() % 17) - 8);
      for (float& v : w) v = static_cast<float>(4 * (static_cast<int>(engine() % 5) - 2));
      const auto expected = test::conv2d(c, x, w, {});
      Window window;
      window.in = window.out = {1, c.h, c.w}, window.kernel = {1, 3, 3}, window.begin = window.end = {0, 1, 1};
      const WinogradPlan plan(window, in, out, {2, true}, w.data());
      const Index pixels = c.h * c.w;
      std::vector<float> found(static_cast<std::size_t>(c.batch * out * pixels));
      const auto scratch = allocate_aligned(plan.scratch_bytes(c.batch, 1));
      plan.forward(test::transposed(x, c.batch, in, pixels).data(), nullptr, nullptr, found.data(), c.batch, {},
                   scratch.get(), kernels, {});
      const auto y = test::transposed(found, c.batch, pixels, out);
      for (std::size_t i = 0; i < y.size(); ++i)
        ASSERT_EQ(static_cast<double>(y[i]), expected[i]) << in << " to " << out;
    }
  }
}

// A state made for a large batch must have room for every smaller one.
TEST(Winograd, SmallerBatchesNeedNoMoreScratch) {
  Window window;
  window.in = window.out = {1, 56, 56}, window.kernel = {1, 3, 3}, window.begin = window.end = {0, 1, 1};
  const std::vector<float> w(64 * 64 * 9, 0.1f);
  for (const ConvMethod& method : {ConvMethod{2}, {4}, {6}, {4, false, true}}) {
    const WinogradPlan plan(window, 64, 64, method, w.data());
    for (const Index threads : {1, 2, 5}) {
      for (Index batch = 1; batch < 9; ++batch)
        EXPECT_LE(plan.scratch_bytes(batch, threads), plan.scratch_bytes(batch + 1, threads));
    }
  }
}

// A layer that pruning leaves with seven channels is no slower than it was with sixteen.
TEST(Winograd, IsChosenForFewChannelsToo) {
  for (const auto& [in, out] : {std::pair<Index, Index>{16, 16}, {16, 7}, {7, 16}}) {
    test::Builder b;
    b.g.opset = 13;
    const ValueId x = b.input("input", {dynamic, in, 32, 32}), w = b.constant({out, in, 3, 3}, 1);
    b.output(b.node("Conv", {x, w}, {{"pads", std::vector<Index>{1, 1, 1, 1}}}), "output");
    const Model m(b.g);
    const auto layers = m.layers();
    EXPECT_TRUE(std::any_of(layers.begin(), layers.end(),
                            [](const LayerInfo& l) { return l.algorithm.starts_with("winograd"); }))
        << in << " to " << out;
  }
}

// 24 pixels are four tiles of six; 28 are seven of four, or five of six that reach over the edge.
TEST(Winograd, LargeTilesAreChosenWhereTheyFit) {
  const auto cycles = [](Index size, Index m, Index batch, Index lanes) {
    Window w;
    w.in = w.out = {1, size, size}, w.kernel = {1, 3, 3}, w.begin = w.end = {0, 1, 1};
    return WinogradPlan::cycles(w, 16, 16, {m}, batch, lanes);
  };
  for (const Index lanes : {8, 16}) {
    for (const Index batch : {1, 8, 32}) {
      EXPECT_LT(cycles(24, 6, batch, lanes), cycles(24, 4, batch, lanes)) << lanes << ' ' << batch;
      EXPECT_LT(cycles(28, 4, batch, lanes), cycles(28, 6, batch, lanes)) << lanes << ' ' << batch;
    }
  }
}

// Few pixels and many channels: nine weights of a filter come sooner than 36, but for those that come beside the work.
TEST(Winograd, KeepsPlainWeightsWhereTilesAreFew) {
  struct Case {
    Index side, in, out;
    bool is_plain;
  };
  for (const auto& [side, in, out, is_plain] :
       {Case{8, 64, 64, true}, {12, 64, 64, false}, {8, 32, 48, true}, {7, 32, 48, true}, {16, 32, 32, false}}) {
    test::Builder b;
    b.g.opset = 13;
    const ValueId x = b.input("input", {dynamic, in, side, side}), w = b.constant({out, in, 3, 3}, 1);
    b.output(b.node("Conv", {x, w}, {{"pads", std::vector<Index>{1, 1, 1, 1}}}), "output");
    ModelOptions options;
    for (const Isa isa : available_isas()) {
      options.isa = isa;
      const Model m(b.g, options);
      const auto layers = m.layers();
      EXPECT_EQ(std::any_of(layers.begin(), layers.end(),
                            [](const LayerInfo& l) { return l.algorithm.ends_with("of plain weights"); }),
                is_plain && kernel::kernels_for(isa).winograd_products)
          << side << ' ' << in;
    }
  }
}

}  // namespace
}  // namespace offramp

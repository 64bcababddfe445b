// Every layer of a Stream on every instruction set against plain loops in double, over time.
#include "offramp/stream/stream.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "reference.hpp"

namespace offramp {
namespace {

using Values = std::vector<double>;

double sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}

// W x, W of [rows][x.size()].
Values times(const std::vector<float>& w, const Values& x, Index rows) {
  Values y(static_cast<std::size_t>(rows));
  for (std::size_t r = 0; r < y.size(); ++r)
    for (std::size_t i = 0; i < x.size(); ++i) y[r] += static_cast<double>(w[r * x.size() + i]) * x[i];
  return y;
}

class EveryIsa : public ::testing::TestWithParam<Isa> {
 protected:
  // The stream's answers to random samples, one by one and in blocks of several sizes, against `plain`'s.
  template <class S, class Plain>
  void expect_equal(const S& net, Plain&& plain, double tolerance = 2e-5) {
    constexpr auto inputs = static_cast<std::size_t>(S::inputs), outputs = static_cast<std::size_t>(S::outputs);
    constexpr std::size_t samples = 100;
    const auto x = test::random_floats(static_cast<Index>(samples * inputs), 100);
    Values expected;
    for (std::size_t t = 0; t < samples; ++t) {
      const auto sample = std::span(x).subspan(t * inputs, inputs);
      const Values y = plain(Values(sample.begin(), sample.end()));
      ASSERT_EQ(y.size(), outputs);
      expected.insert(expected.end(), y.begin(), y.end());
    }
    for (const std::size_t block : {1UL, 2UL, 3UL, 7UL, 8UL, 13UL, 64UL}) {
      auto state = net.make_state();
      std::vector<float> y(samples * outputs + 16, -7.0f);
      for (std::size_t t = 0; t < samples;) {
        const std::size_t n = std::min(block, samples - t);
        const auto in = std::span(x).subspan(t * inputs, n * inputs);
        const auto out = std::span(y).subspan(t * outputs, n * outputs);
        if (block == 1) {
          const auto answer = net.step(state, in.template first<inputs>());
          std::copy(answer.begin(), answer.end(), out.begin());
        } else {
          net.steps(state, in, out);
        }
        t += n;
      }
      for (std::size_t i = 0; i < samples * outputs; ++i)
        ASSERT_NEAR(static_cast<double>(y[i]), expected[i], tolerance)
            << "blocks of " << block << ", step " << i / outputs << ", output " << i % outputs;
      for (std::size_t i = samples * outputs; i < y.size(); ++i) ASSERT_EQ(y[i], -7.0f) << "behind the answers";
    }
  }

  template <Index In, Index H>
  void gru() {
    const auto w = test::random_floats(3 * H * In, 1), r = test::random_floats(3 * H * H, 2),
               b = test::random_floats(6 * H, 3);
    std::vector<float> small = r;
    for (float& v : small) v /= static_cast<float>(H);
    Values h(static_cast<std::size_t>(H));
    expect_equal(Stream(GetParam(), stream::Gru<In, H>(w, small, b)), [&](const Values& x) {
      const Values a = times(w, x, 3 * H), c = times(small, h, 3 * H);
      const auto gate = [&](std::size_t i) {
        return std::pair(a[i] + static_cast<double>(b[i]), c[i] + static_cast<double>(b[3 * h.size() + i]));
      };
      Values next(h.size());
      for (std::size_t i = 0; i < h.size(); ++i) {
        const auto [zx, zh] = gate(i);
        const auto [rx, rh] = gate(h.size() + i);
        const auto [nx, nh] = gate(2 * h.size() + i);
        const double z = sigmoid(zx + zh);
        next[i] = (1 - z) * std::tanh(nx + sigmoid(rx + rh) * nh) + z * h[i];
      }
      return h = next;
    });
  }

  template <Index In, Index H>
  void lstm() {
    const auto w = test::random_floats(4 * H * In, 1), b = test::random_floats(8 * H, 3);
    auto r = test::random_floats(4 * H * H, 2);
    for (float& v : r) v /= static_cast<float>(H);
    Values h(static_cast<std::size_t>(H)), cell(h.size());
    expect_equal(Stream(GetParam(), stream::Lstm<In, H>(w, r, b)), [&](const Values& x) {
      const Values a = times(w, x, 4 * H), c = times(r, h, 4 * H);
      const auto gate = [&](std::size_t g, std::size_t i) {
        const std::size_t at = g * h.size() + i;
        return a[at] + c[at] + static_cast<double>(b[at]) + static_cast<double>(b[4 * h.size() + at]);
      };
      for (std::size_t i = 0; i < h.size(); ++i) {
        cell[i] = sigmoid(gate(2, i)) * cell[i] + sigmoid(gate(0, i)) * std::tanh(gate(3, i));
        h[i] = sigmoid(gate(1, i)) * std::tanh(cell[i]);
      }
      return h;
    });
  }

  template <Index In, Index Out, Index Kernel, Index Dilation>
  void conv() {
    const auto w = test::random_floats(Out * In * Kernel, 1), b = test::random_floats(Out, 2);
    std::vector<Values> past;
    expect_equal(Stream(GetParam(), stream::Conv1d<In, Out, Kernel, Dilation, kernel::Unary::relu>(w, b)),
                 [&](const Values& x) {
                   past.push_back(x);
                   Values y(b.begin(), b.end());
                   for (Index k = 0; k < Kernel; ++k) {
                     const Index t = static_cast<Index>(past.size()) - 1 - (Kernel - 1 - k) * Dilation;
                     if (t < 0) continue;
                     for (Index o = 0; o < Out; ++o)
                       for (Index i = 0; i < In; ++i)
                         y[static_cast<std::size_t>(o)] +=
                             static_cast<double>(w[static_cast<std::size_t>((o * In + i) * Kernel + k)]) *
                             past[static_cast<std::size_t>(t)][static_cast<std::size_t>(i)];
                   }
                   for (double& v : y) v = std::max(v, 0.0);
                   return y;
                 });
  }

  template <Index In, Index Out>
  void dense() {
    const auto w = test::random_floats(Out * In, 1), b = test::random_floats(Out, 2);
    expect_equal(Stream(GetParam(), stream::Dense<In, Out, kernel::Unary::tanh>(w, b)), [&](const Values& x) {
      Values y = times(w, x, Out);
      for (std::size_t i = 0; i < y.size(); ++i) y[i] = std::tanh(y[i] + static_cast<double>(b[i]));
      return y;
    });
  }
};

TEST_P(EveryIsa, GruEqualsPlainLoops) {
  gru<1, 1>();
  gru<1, 16>();
  gru<3, 20>();
  gru<32, 64>();
  gru<5, 130>();
  gru<4, 4>();
  gru<1, 24>();
}

TEST_P(EveryIsa, LstmEqualsPlainLoops) {
  lstm<1, 8>();
  lstm<2, 33>();
  lstm<17, 96>();
}

TEST_P(EveryIsa, CausalConvolutionEqualsPlainLoops) {
  conv<1, 1, 1, 1>();
  conv<8, 4, 3, 2>();
  conv<16, 16, 3, 1>();
  conv<19, 40, 5, 3>();
  conv<16, 16, 15, 4>();
  conv<4, 4, 3, 1>();
}

TEST_P(EveryIsa, DenseEqualsPlainLoops) {
  dense<1, 1>();
  dense<64, 1>();
  dense<7, 1>();
  dense<3, 40>();
  dense<64, 64>();
}

// What the docstring of the short tanh promises, and that a NaN is not hidden.
TEST_P(EveryIsa, TanhIsWithinSixUlp) {
  const Stream tanh(GetParam(), stream::Dense<1, 16, kernel::Unary::tanh>(std::vector<float>(16, 1.0f), {}));
  auto state = tanh.make_state();
  double worst = 0;
  for (float x = -12; x < 12; x += 0.00037f) {
    const double expected = std::tanh(static_cast<double>(x));
    const double ulp = std::ldexp(1.0, std::max(std::ilogb(expected), -126) - 23);
    const float y = tanh.step(state, std::span<const float, 1>(&x, 1))[5];
    worst = std::max(worst, std::fabs(static_cast<double>(y) - expected) / ulp);
  }
  EXPECT_LT(worst, 6);
  EXPECT_GT(worst, 0);
  for (const float x : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()})
    EXPECT_NEAR(tanh.step(state, std::span<const float, 1>(&x, 1))[0], std::copysign(1.0f, x), 1e-6f);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(tanh.step(state, std::span<const float, 1>(&nan, 1))[0]));
}

INSTANTIATE_TEST_SUITE_P(Stream, EveryIsa, ::testing::ValuesIn(available_isas().begin(), available_isas().end()),
                         [](const auto& p) { return std::string(name_of(p.param)); });

// A layer of the user's own.
struct Difference {
  static constexpr Index inputs = 1, outputs = 1;
  struct State {
    float last = 0;
  };
  void step(State& s, const float* in, float* out) const noexcept {
    *out = *in - s.last;
    s.last = *in;
  }
};

TEST(Stream, RunsLayersOfTheUsersAndKeepsStatesApart) {
  const Stream net(Difference{}, stream::Dense<1, 1>({2.0f}, {}));
  auto a = net.make_state(), b = net.make_state();
  const auto step = [&](auto& state, float x) { return net.step(state, std::span<const float, 1>(&x, 1))[0]; };
  EXPECT_EQ(step(a, 3), 6);
  EXPECT_EQ(step(b, 1), 2);
  EXPECT_EQ(step(a, 4), 2);
  EXPECT_EQ(step(b, 1), 0);
  a = net.make_state();
  EXPECT_EQ(step(a, 5), 10);
}

TEST(Stream, AnswersBlocksByLayersOfTheUsersToo) {
  const Stream net(Difference{}, stream::Dense<1, 1>({2.0f}, {}));
  auto state = net.make_state();
  std::vector<float> x{3, 4, 4, 0, 1, 2, 4, 8, 16, 32, 32};
  net.steps(state, x, x);  // in place
  EXPECT_EQ(x, (std::vector<float>{6, 2, 0, -8, 2, 2, 4, 8, 16, 32, 0}));
  net.steps(state, {}, {});
}

// A block in place, where answers are as wide as samples and a layer makes them in more than one go.
TEST(Stream, AnswersBlocksInPlace) {
  const Stream net(stream::Dense<48, 48>(test::random_floats(48 * 48, 1), {}));
  auto state = net.make_state();
  std::vector<float> x = test::random_floats(48 * 11, 2), y(x.size());
  net.steps(state, x, y);
  net.steps(state, x, x);
  EXPECT_EQ(x, y);
}

TEST(Stream, RefusesBlocksOfTheWrongSize) {
  const Stream net(stream::Dense<2, 1>({1.0f, 1.0f}, {}));
  auto state = net.make_state();
  std::vector<float> x(5), y(2);
  EXPECT_THROW(net.steps(state, x, y), Error);
  EXPECT_THROW(net.steps(state, std::span(x).first(2), y), Error);
  EXPECT_NO_THROW(net.steps(state, std::span(x).first(4), y));
}

TEST(Stream, RefusesWeightsOfTheWrongSize) {
  const std::vector<float> four(4, 0.0f);
  EXPECT_THROW((stream::Dense<2, 3>(four, {})), Error);
  EXPECT_THROW((stream::Dense<2, 2>(four, {1.0f})), Error);
  EXPECT_THROW((stream::Conv1d<1, 1, 3>(four, {})), Error);
  EXPECT_THROW((stream::Gru<1, 2>(four, four, {})), Error);
  EXPECT_THROW((stream::Lstm<1, 1>(four, four, four)), Error);
}

}  // namespace
}  // namespace offramp

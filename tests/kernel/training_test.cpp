// Every kernel of training, of every instruction set, against plain loops, with tails of every length.
#include "offramp/kernel/training.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "reference.hpp"

namespace offramp::kernel {
namespace {

class TrainingKernelsTest : public ::testing::TestWithParam<Isa> {
 protected:
  const TrainingKernels& k = training_kernels_for(GetParam());
};

double at(const std::vector<float>& v, Index i) {
  return static_cast<double>(v[static_cast<std::size_t>(i)]);
}

TEST_P(TrainingKernelsTest, OuterProductsAndMoments) {
  for (const Index n : {1, 7, 16, 18, 33, 64}) {
    for (const Index width : {11, 300}) {  // few and many rows in a block
      const Index rows = 300;
      const auto a = test::random_floats(rows * width, 1), b = test::random_floats(rows * n, 2);
      std::vector<float> c(static_cast<std::size_t>(width * n), 0.5f);
      k.outer(a.data(), width, b.data(), n, rows, width, n, c.data());
      std::vector<float> mean(static_cast<std::size_t>(n)), variance(mean);
      k.moments(b.data(), rows, n, mean.data(), variance.data());
      for (Index j = 0; j < n; ++j) {
        double m = 0, v = 0;
        for (Index r = 0; r < rows; ++r) m += at(b, r * n + j) / static_cast<double>(rows);
        for (Index r = 0; r < rows; ++r) v += std::pow(at(b, r * n + j) - m, 2) / static_cast<double>(rows);
        EXPECT_NEAR(at(mean, j), m, 1e-5);
        EXPECT_NEAR(at(variance, j), v, 1e-5);
        for (Index i = 0; i < width; ++i) {
          double dot = 0.5;
          for (Index r = 0; r < rows; ++r) dot += at(a, r * width + i) * at(b, r * n + j);
          EXPECT_NEAR(at(c, i * n + j), dot, 1e-3) << i << "," << j << " of " << n;
        }
      }
    }
  }
}

TEST_P(TrainingKernelsTest, BatchNormAndItsGradients) {
  for (const Index n : {1, 7, 16, 18, 64, 75}) {
    for (const bool relu : {false, true}) {
      const Index rows = 700;
      const auto in = test::random_floats(rows * n, 1), d_out = test::random_floats(rows * n, 2);
      const auto scale = test::random_floats(n, 3), shift = test::random_floats(n, 4);
      std::vector<float> mean(static_cast<std::size_t>(n)), inverse(mean), sum(mean), dot(mean), out(in.size());
      k.moments(in.data(), rows, n, mean.data(), inverse.data());
      for (float& v : inverse) v = 1 / std::sqrt(v);
      const BatchNorm b{mean.data(), inverse.data(), scale.data(), shift.data(), relu};
      k.batch_norm(b, in.data(), out.data(), rows, n);
      k.batch_norm_sums(b, in.data(), d_out.data(), rows, n, sum.data(), dot.data());
      auto d = d_out;
      k.batch_norm_gradient(b, in.data(), d.data(), rows, n, sum.data(), dot.data());
      for (Index j = 0; j < n; ++j) {
        const auto x = [&](Index r) { return (at(in, r * n + j) - at(mean, j)) * at(inverse, j); };
        const auto y = [&](Index r) { return x(r) * at(scale, j) + at(shift, j); };
        const auto g = [&](Index r) { return relu && !(at(out, r * n + j) > 0) ? 0.0 : at(d_out, r * n + j); };
        double s = 0, t = 0;
        for (Index r = 0; r < rows; ++r) s += g(r), t += g(r) * x(r);
        EXPECT_NEAR(at(sum, j), s, 1e-3);
        EXPECT_NEAR(at(dot, j), t, 1e-3);
        for (Index r = 0; r < rows; ++r) {
          EXPECT_NEAR(at(out, r * n + j), relu ? std::max(0.0, y(r)) : y(r), 1e-5);
          const auto m = static_cast<double>(rows);
          EXPECT_NEAR(at(d, r * n + j), at(scale, j) * at(inverse, j) * (g(r) - s / m - x(r) * t / m), 1e-5);
        }
      }
    }
  }
}

TEST_P(TrainingKernelsTest, ReluGradientAddsWhereTheInputIsPositive) {
  for (const Index n : {1, 7, 16, 37, 64}) {
    auto x = test::random_floats(n, 3);
    x[0] = 0;
    const auto d = test::random_floats(n, 4), before = test::random_floats(n, 5);
    auto after = before;
    k.relu_gradient(x.data(), d.data(), after.data(), n);
    for (std::size_t i = 0; i < x.size(); ++i) EXPECT_EQ(after[i], x[i] > 0 ? before[i] + d[i] : before[i]);
  }
}

TEST_P(TrainingKernelsTest, DepthwiseGradients) {
  for (const Index c : {1, 5, 16, 35}) {
    for (const Index stride : {1, 2}) {
      for (const Index size : {1, 2, 7}) {
        Depthwise g;
        g.channels = c;
        g.in_h = size, g.in_w = size + 1;
        g.kernel_h = g.kernel_w = 3, g.stride_h = g.stride_w = stride, g.pad_top = g.pad_left = 1;
        g.out_h = (g.in_h + stride - 1) / stride, g.out_w = (g.in_w + stride - 1) / stride;
        const auto x = test::random_floats(g.in_h * g.in_w * c, 1), w = test::random_floats(9 * c, 2),
                   d = test::random_floats(g.out_h * g.out_w * c, 3);
        g.in = x.data(), g.weights = w.data();
        std::vector<double> dw(static_cast<std::size_t>(9 * c), 0.25), dx(x.size(), 0.5);
        for (Index o = 0; o < g.out_h * g.out_w; ++o) {
          for (Index t = 0; t < 9; ++t) {
            const Index y = o / g.out_w * stride + t / 3 - 1, z = o % g.out_w * stride + t % 3 - 1;
            if (y < 0 || y >= g.in_h || z < 0 || z >= g.in_w) continue;
            for (Index i = 0; i < c; ++i) {
              const Index pixel = (y * g.in_w + z) * c + i;
              dw[static_cast<std::size_t>(t * c + i)] += at(d, o * c + i) * at(x, pixel);
              dx[static_cast<std::size_t>(pixel)] += at(d, o * c + i) * at(w, t * c + i);
            }
          }
        }
        std::vector<float> found_w(dw.size(), 0.25f), found_x(dx.size(), 0.5f);
        k.depthwise_gradient(g, d.data(), found_w.data(), found_x.data());
        EXPECT_LT(test::relative_error(found_w, dw), 1e-5);
        EXPECT_LT(test::relative_error(found_x, dx), 1e-5);
        std::fill(found_w.begin(), found_w.end(), 0.25f);
        k.depthwise_gradient(g, d.data(), found_w.data(), nullptr);
        EXPECT_LT(test::relative_error(found_w, dw), 1e-5);
      }
    }
  }
}

// Where the largest number stands twice, the first of them is moved.
TEST_P(TrainingKernelsTest, LargestGradientGoesToTheFirst) {
  for (const Index c : {1, 7, 16, 33}) {
    const Index rows = 3, columns = 4, step = 6 * c;
    auto x = test::random_floats(rows * step, 1);
    std::vector<float> largest(static_cast<std::size_t>(c), 2), found(x.size(), 0.5f), expected(found);
    const auto d = test::random_floats(c, 2);
    for (Index i = 0; i < c; ++i) {
      const Index first = (i % rows) * step + (i % columns) * c + i;
      x[static_cast<std::size_t>(first)] = 2;
      x[static_cast<std::size_t>((rows - 1) * step + (columns - 1) * c + i)] = 2;
      expected[static_cast<std::size_t>(first)] += d[static_cast<std::size_t>(i)];
    }
    k.largest_gradient(x.data(), step, rows, columns, c, largest.data(), d.data(), found.data());
    EXPECT_EQ(found, expected);
  }
}

TEST_P(TrainingKernelsTest, AdamStepsAsItsPaperSays) {
  for (const Index n : {1, 7, 16, 37}) {
    const auto start = test::random_floats(n, 1);
    auto value = start;
    std::vector<float> first(value.size(), 0.0f), second(first);
    std::vector<double> x(start.begin(), start.end()), m(x.size(), 0), v(x.size(), 0);
    for (int step = 1; step <= 3; ++step) {
      auto gradient = test::random_floats(n, static_cast<unsigned>(10 + step));
      AdamStep s;
      s.rate = static_cast<float>(0.01 / (1 - std::pow(0.9, step)));
      s.second_scale = static_cast<float>(1 / (1 - std::pow(0.999, step)));
      s.shrink = 0.99f;
      for (std::size_t i = 0; i < x.size(); ++i) {
        const auto g = static_cast<double>(gradient[i]);
        m[i] = 0.9 * m[i] + 0.1 * g;
        v[i] = 0.999 * v[i] + 0.001 * g * g;
        x[i] = 0.99 * x[i] -
               0.01 * m[i] / (1 - std::pow(0.9, step)) / (std::sqrt(v[i] / (1 - std::pow(0.999, step))) + 1e-8);
      }
      k.adam(s, value.data(), gradient.data(), first.data(), second.data(), n);
      for (const float g : gradient) EXPECT_EQ(g, 0);
    }
    for (std::size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(static_cast<double>(value[i]), x[i], 1e-5);
  }
}

INSTANTIATE_TEST_SUITE_P(All, TrainingKernelsTest,
                         ::testing::ValuesIn(available_isas().begin(), available_isas().end()),
                         [](const auto& p) { return std::string(name_of(p.param)); });

}  // namespace
}  // namespace offramp::kernel

/// @file reference.hpp
/// Plain implementations that the kernels are held against, and small helpers of the tests.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "offramp/core/tensor.hpp"
#include "offramp/layer/node.hpp"

namespace test {

using offramp::Index;

inline std::vector<float> random_floats(Index n, unsigned seed, float low = -1, float high = 1) {
  std::mt19937 engine(seed);
  std::uniform_real_distribution<float> d(low, high);
  std::vector<float> v(static_cast<std::size_t>(n));
  for (float& x : v) x = d(engine);
  return v;
}

inline offramp::Tensor random_tensor(const offramp::Shape& s, unsigned seed) {
  return offramp::Tensor::of<float>(s, random_floats(s.count(), seed));
}

inline std::vector<double> matmul(std::span<const float> a, std::span<const float> b, Index m, Index n, Index k) {
  std::vector<double> c(static_cast<std::size_t>(m * n), 0);
  for (Index i = 0; i < m; ++i) {
    for (Index p = 0; p < k; ++p) {
      for (Index j = 0; j < n; ++j)
        c[static_cast<std::size_t>(i * n + j)] += static_cast<double>(a[static_cast<std::size_t>(i * k + p)]) *
                                                  static_cast<double>(b[static_cast<std::size_t>(p * n + j)]);
    }
  }
  return c;
}

struct ConvCase {
  Index batch = 1, in = 1, out = 1, group = 1, h = 1, w = 1, kh = 1, kw = 1, sh = 1, sw = 1, dh = 1, dw = 1, top = 0,
        left = 0, bottom = 0, right = 0;
  Index out_h() const { return (h + top + bottom - (kh - 1) * dh - 1) / sh + 1; }
  Index out_w() const { return (w + left + right - (kw - 1) * dw - 1) / sw + 1; }
  offramp::Node node() const {
    offramp::Node n;
    n.op = "Conv";
    n.set("kernel_shape", std::vector<Index>{kh, kw});
    n.set("strides", std::vector<Index>{sh, sw});
    n.set("dilations", std::vector<Index>{dh, dw});
    n.set("pads", std::vector<Index>{top, left, bottom, right});
    n.set("group", group);
    return n;
  }
  std::string text() const {
    return std::to_string(batch) + "x" + std::to_string(in) + "x" + std::to_string(h) + "x" + std::to_string(w) +
           " to " + std::to_string(out) + " in " + std::to_string(group) + " groups, kernel " + std::to_string(kh) +
           "x" + std::to_string(kw) + " stride " + std::to_string(sh) + "," + std::to_string(sw) + " dilation " +
           std::to_string(dh) + "," + std::to_string(dw);
  }
};

/// NCHW convolution, seven loops in double.
inline std::vector<double> conv2d(const ConvCase& c, std::span<const float> x, std::span<const float> w,
                                  std::span<const float> bias) {
  std::vector<double> y;
  const Index ig = c.in / c.group, og = c.out / c.group;
  for (Index n = 0; n < c.batch; ++n) {
    for (Index o = 0; o < c.out; ++o) {
      for (Index oy = 0; oy < c.out_h(); ++oy) {
        for (Index ox = 0; ox < c.out_w(); ++ox) {
          double sum = bias.empty() ? 0 : static_cast<double>(bias[static_cast<std::size_t>(o)]);
          for (Index i = 0; i < ig; ++i) {
            for (Index ky = 0; ky < c.kh; ++ky) {
              for (Index kx = 0; kx < c.kw; ++kx) {
                const Index iy = oy * c.sh + ky * c.dh - c.top, ix = ox * c.sw + kx * c.dw - c.left;
                if (iy < 0 || iy >= c.h || ix < 0 || ix >= c.w) continue;
                const Index channel = o / og * ig + i;
                sum += static_cast<double>(x[static_cast<std::size_t>(((n * c.in + channel) * c.h + iy) * c.w + ix)]) *
                       static_cast<double>(w[static_cast<std::size_t>(((o * ig + i) * c.kh + ky) * c.kw + kx)]);
              }
            }
          }
          y.push_back(sum);
        }
      }
    }
  }
  return y;
}

/// The largest difference over the largest magnitude.
inline double relative_error(std::span<const float> found, std::span<const double> expected) {
  double largest = 1e-30, difference = found.size() == expected.size() ? 0 : INFINITY;
  for (std::size_t i = 0; i < std::min(found.size(), expected.size()); ++i) {
    largest = std::max(largest, std::fabs(expected[i]));
    const double d = std::fabs(static_cast<double>(found[i]) - expected[i]);
    difference = d == d ? std::max(difference, d) : INFINITY;
  }
  return difference / largest;
}

}  // namespace test

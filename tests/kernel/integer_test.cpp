// The kernels on bytes of every instruction set against plain loops.
#include "offramp/kernel/integer.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <tuple>
#include <vector>

#include "offramp/core/executor.hpp"
#include "offramp/kernel/dispatch.hpp"
#include "offramp/kernel/split.hpp"

namespace offramp::kernel {
namespace {

class EveryIntegerIsa : public ::testing::TestWithParam<Isa> {
 protected:
  const IntegerKernels& k = *kernels_for(GetParam()).integer;
};

template <class T>
std::vector<T> random_bytes(Index n, unsigned seed) {
  std::mt19937 engine(seed);
  std::vector<T> v(static_cast<std::size_t>(n));
  for (T& x : v) x = static_cast<T>(engine() & 0xff);
  return v;
}
std::vector<float> scales(Index n, unsigned seed) {
  std::mt19937 engine(seed);
  std::vector<float> v(static_cast<std::size_t>((n + 63) / 64 * 64), 0.0f);
  for (Index i = 0; i < n; ++i) v[static_cast<std::size_t>(i)] = 1e-3f + 1e-6f * static_cast<float>(engine() % 1000);
  return v;
}

int rounded(float v, float low, float high) {
  return static_cast<int>(std::nearbyint(std::clamp(v, low, high)));
}
// Rounding may fall the other way where a fused multiply-add keeps a bit more.
void expect_byte(int found, int expected, const char* what, Index at) {
  EXPECT_LE(std::abs(found - expected), 1) << what << " " << at;
}

TEST_P(EveryIntegerIsa, GemmEqualsPlainLoops) {
  unsigned seed = 0;
  for (const Index m : {1, 2, 7, 8, 9, 33}) {
    for (const Index n : {1, 10, 16, 17, 32, 48, 50, 70}) {
      for (const Index run : {1, 3, 4, 9, 16, 37}) {
        for (const Index taps : {1, 3}) {
          const auto a = random_bytes<std::uint8_t>(m * taps * run, ++seed);
          const auto b = random_bytes<std::int8_t>(taps * run * n, ++seed);
          std::vector<std::int8_t> packed(static_cast<std::size_t>(integer_packed_size(taps, run, n)));
          integer_pack(b.data(), taps, run, n, packed.data());
          std::vector<std::int32_t> bias(static_cast<std::size_t>((n + 15) / 16 * 16), 0), offsets;
          for (Index j = 0; j < n; ++j) bias[static_cast<std::size_t>(j)] = static_cast<std::int32_t>(j * 101 - 700);
          const auto scale = scales(n, ++seed);
          const std::vector<std::uint8_t> fill(static_cast<std::size_t>(run), 7);
          const auto residual = random_bytes<std::uint8_t>(m * n, ++seed);
          for (Index i = 0; i < m; ++i) {
            for (Index t = 0; t < taps; ++t)
              offsets.push_back(taps > 1 && (i + t) % 4 == 3 ? -1 : static_cast<std::int32_t>((i * taps + t) * run));
          }
          const auto sum = [&](Index i, Index j) {
            std::int32_t s = bias[static_cast<std::size_t>(j)];
            for (Index t = 0; t < taps; ++t) {
              const std::int32_t at = offsets[static_cast<std::size_t>(i * taps + t)];
              for (Index c = 0; c < run; ++c)
                s += (at < 0 ? 7 : a[static_cast<std::size_t>(at + c)]) *
                     b[static_cast<std::size_t>((t * run + c) * n + j)];
            }
            return s;
          };
          IntegerGemm g;
          g.m = m, g.n = n, g.taps = taps, g.run = run, g.a = a.data(), g.lda = run, g.fill = fill.data();
          if (taps > 1) g.offsets = offsets.data();
          g.b = packed.data(), g.bias = bias.data(), g.ldc = n;
          g.columns_outside = seed % 2 == 0;
          g.output.scale = scale.data();
          // To floats, exactly.
          std::vector<float> real(static_cast<std::size_t>(m * n + 1), -1.0f);
          g.c = real.data();
          g.output.stores_real = true, g.output.low = -40, g.output.high = 50;
          k.gemm(g);
          for (Index i = 0; i < m; ++i) {
            for (Index j = 0; j < n; ++j) {
              const float v = static_cast<float>(sum(i, j)) * scale[static_cast<std::size_t>(j)];
              ASSERT_EQ(real[static_cast<std::size_t>(i * n + j)], std::clamp(v, -40.0f, 50.0f))
                  << m << "x" << n << "x" << taps << "x" << run;
            }
          }
          EXPECT_EQ(real.back(), -1.0f);
          // To bytes, of either sign, alone and added to others.
          for (const bool is_signed : {false, true}) {
            for (const bool adds : {false, true}) {
              std::vector<std::uint8_t> c(static_cast<std::size_t>(m * n + 1), 77);
              g.c = c.data();
              g.output = {};
              g.output.scale = scale.data(), g.output.is_signed = is_signed;
              g.output.zero = is_signed ? -5 : 9;
              g.output.low = is_signed ? -123.0f : -9.0f, g.output.high = is_signed ? 100.0f : 240.0f;
              if (adds) {
                g.output.residual = residual.data(), g.output.ldr = n;
                g.output.y_scale = 0.75f, g.output.residual_scale = 0.5f, g.output.residual_zero = 128;
                g.output.sum_low = 0, g.output.sum_high = 90;
              }
              k.gemm(g);
              for (Index i = 0; i < m; ++i) {
                for (Index j = 0; j < n; ++j) {
                  const auto u = static_cast<std::size_t>(i * n + j);
                  const float v = static_cast<float>(sum(i, j)) * scale[static_cast<std::size_t>(j)];
                  int expected = rounded(v, g.output.low, g.output.high);
                  if (adds)
                    expected = rounded(
                        static_cast<float>(expected) * 0.75f + (static_cast<float>(residual[u]) - 128.0f) * 0.5f, 0,
                        90);
                  const int found = (is_signed ? static_cast<std::int8_t>(c[u]) : c[u]) - g.output.zero;
                  ASSERT_NO_FATAL_FAILURE(expect_byte(found, expected, "gemm", static_cast<Index>(u)));
                }
              }
              EXPECT_EQ(c.back(), 77);
            }
          }
        }
      }
    }
  }
}

// Rows or columns shared by threads give the same bytes.
TEST_P(EveryIntegerIsa, SplitProductsAreTheSame) {
  ThreadPool pool(3);
  for (const auto& [m, n] : {std::pair<Index, Index>{301, 70}, {9, 1000}}) {
    const Index run = 64;
    const auto a = random_bytes<std::uint8_t>(m * run, 1);
    const auto b = random_bytes<std::int8_t>(run * n, 2);
    std::vector<std::int8_t> packed(static_cast<std::size_t>(integer_packed_size(1, run, n)));
    integer_pack(b.data(), 1, run, n, packed.data());
    const std::vector<std::int32_t> bias(static_cast<std::size_t>((n + 15) / 16 * 16), 11);
    const auto scale = scales(n, 3);
    const auto residual = random_bytes<std::uint8_t>(m * n, 4);
    IntegerGemm g;
    g.m = m, g.n = n, g.run = run, g.a = a.data(), g.lda = run;
    g.b = packed.data(), g.bias = bias.data(), g.ldc = n;
    g.output.scale = scale.data();
    for (const bool stores_real : {false, true}) {
      g.output.stores_real = stores_real;
      g.output.low = -100, g.output.high = 100, g.output.zero = stores_real ? 0 : 120;
      if (!stores_real) {
        g.output.residual = residual.data(), g.output.ldr = n;
        g.output.y_scale = 0.75f, g.output.residual_scale = 0.5f, g.output.residual_zero = 128;
        g.output.sum_low = -100, g.output.sum_high = 90;
      } else {
        g.output.residual = nullptr;
      }
      std::vector<std::uint8_t> alone(static_cast<std::size_t>(m * n * 4), 1), shared(alone);
      g.c = alone.data();
      k.gemm(g);
      g.c = shared.data();
      integer_gemm(g, kernels_for(GetParam()), ExecutorRef(pool));
      EXPECT_EQ(alone, shared) << m << "x" << n;
    }
  }
}

// Rows at equal steps, as those of an image are, give what the same rows give by their offsets.
TEST_P(EveryIntegerIsa, RowsAtEqualStepsAreThoseOfTheirOffsets) {
  const Index taps = k.reads_tiles ? 1 : 3;  // kernels that read tiles take several by offsets
  unsigned seed = 500;
  for (const Index m : {1, 3, 4, 7, 8, 13, 16, 17, 31, 56}) {
    for (const Index n : {5, 16, 24, 40, 64}) {
      for (const auto& [lda, run] : {std::pair<Index, Index>{3, 9}, {6, 21}, {16, 48}, {32, 96}}) {
        const Index tap_step = (m - 1) * lda + run + 4;
        const auto a = random_bytes<std::uint8_t>(taps * tap_step + 16 * lda + 64, ++seed);
        const auto b = random_bytes<std::int8_t>(taps * run * n, ++seed);
        std::vector<std::int8_t> packed(static_cast<std::size_t>(integer_packed_size(taps, run, n)));
        integer_pack(b.data(), taps, run, n, packed.data());
        const std::vector<std::int32_t> bias(static_cast<std::size_t>((n + 15) / 16 * 16), 11);
        const auto scale = scales(n, ++seed);
        const auto residual = random_bytes<std::uint8_t>(m * n, ++seed);
        std::vector<std::int32_t> offsets;
        for (Index i = 0; i < m; ++i) {
          for (Index t = 0; t < taps; ++t) offsets.push_back(static_cast<std::int32_t>(i * lda + t * tap_step));
        }
        for (const bool reads_past : {false, true}) {
          IntegerGemm g;
          g.m = m, g.n = n, g.taps = taps, g.run = run, g.a = a.data(), g.lda = lda;
          g.b = packed.data(), g.bias = bias.data(), g.ldc = n, g.reads_past = reads_past;
          g.output.scale = scale.data(), g.output.low = -100, g.output.high = 100, g.output.zero = 120;
          g.output.residual = residual.data(), g.output.ldr = n;
          g.output.y_scale = 0.75f, g.output.residual_scale = 0.5f, g.output.residual_zero = 128;
          g.output.sum_low = -100, g.output.sum_high = 90;
          std::vector<std::uint8_t> by_offsets(static_cast<std::size_t>(m * n + 1), 77), by_steps(by_offsets);
          g.offsets = offsets.data(), g.c = by_offsets.data();
          k.gemm(g);
          g.offsets = nullptr, g.tap_step = tap_step, g.c = by_steps.data();
          k.gemm(g);
          EXPECT_EQ(by_steps, by_offsets) << m << "x" << n << "x" << run;
          EXPECT_EQ(by_offsets.back(), 77);
        }
      }
    }
  }
}

TEST_P(EveryIntegerIsa, DepthwiseEqualsPlainLoops) {
  unsigned seed = 100;
  for (const Index channels : {1, 16, 24, 32, 64, 70, 96, 144}) {
    for (const Index size : {3, 5}) {
      for (const auto& [stride, h, w, dilation] : {std::tuple<Index, Index, Index, Index>{1, 7, 6, 1},
                                                   {2, 7, 6, 1},
                                                   {1, 9, 13, 1},
                                                   {2, 8, 19, 1},
                                                   {1, 9, 14, 2}}) {
        const Index pad = size / 2, reach = (size - 1) * dilation + 1;
        const Index oh = (h + 2 * pad - reach) / stride + 1, ow = (w + 2 * pad - reach) / stride + 1;
        const auto in = random_bytes<std::uint8_t>(h * w * channels, ++seed);
        const auto weights = random_bytes<std::int8_t>(size * size * channels, ++seed);
        std::vector<std::int8_t> packed(static_cast<std::size_t>(depthwise_packed_size(size * size, channels)));
        pack_depthwise(weights.data(), size * size, channels, packed.data());
        std::vector<std::int32_t> bias(static_cast<std::size_t>((channels + 63) / 64 * 64), 11);
        const auto scale = scales(channels, ++seed);
        const std::vector<std::uint8_t> fill(static_cast<std::size_t>(channels + 64), 3);
        std::vector<std::uint8_t> out(static_cast<std::size_t>(oh * ow * channels + 1), 77);
        IntegerDepthwise d;
        d.channels = channels, d.in_h = h, d.in_w = w, d.out_h = oh, d.out_w = ow;
        d.kernel_h = d.kernel_w = size, d.stride_h = d.stride_w = stride, d.dilation_h = d.dilation_w = dilation,
        d.pad_top = d.pad_left = pad;
        d.in = in.data(), d.fill = fill.data(), d.weights = weights.data(), d.packed = packed.data();
        d.bias = bias.data(), d.out = out.data();
        d.output.scale = scale.data(), d.output.low = -20, d.output.high = 200, d.output.zero = 30;
        k.depthwise(d);
        for (Index y = 0; y < oh; ++y) {
          for (Index x = 0; x < ow; ++x) {
            for (Index c = 0; c < channels; ++c) {
              std::int32_t sum = 11;
              for (Index t = 0; t < size * size; ++t) {
                const Index iy = y * stride - pad + t / size * dilation, ix = x * stride - pad + t % size * dilation;
                const bool inside = iy >= 0 && iy < h && ix >= 0 && ix < w;
                sum += (inside ? in[static_cast<std::size_t>((iy * w + ix) * channels + c)] : 3) *
                       weights[static_cast<std::size_t>(t * channels + c)];
              }
              const int expected = rounded(static_cast<float>(sum) * scale[static_cast<std::size_t>(c)], -20, 200) + 30;
              ASSERT_NO_FATAL_FAILURE(
                  expect_byte(out[static_cast<std::size_t>((y * ow + x) * channels + c)], expected, "depthwise", c));
            }
          }
        }
        EXPECT_EQ(out.back(), 77);
      }
    }
  }
}

// Numbers around the middle between two bytes, where a division by the reciprocal could round otherwise.
TEST_P(EveryIntegerIsa, QuantizationDividesExactly) {
  std::mt19937 random(3);
  std::vector<float> x(192 + 5);
  std::vector<std::uint8_t> q(x.size());
  for (int trial = 0; trial < 2000; ++trial) {
    const float scale = std::ldexp(1.0f + static_cast<float>(random() % (1u << 23)) * 0x1p-23f,
                                   trial % 50 == 0 ? -100 : static_cast<int>(random() % 40) - 20);
    const int zero = static_cast<int>(random() % 256);
    for (float& v : x) {
      v = static_cast<float>((static_cast<double>(random() % 600) - 299.5) * static_cast<double>(scale));
      for (auto steps = random() % 4; steps > 0; --steps) v = std::nextafter(v, random() % 2 ? 1e30f : -1e30f);
    }
    k.quantize(x.data(), q.data(), static_cast<Index>(x.size()), scale, zero, false);
    for (std::size_t i = 0; i < x.size(); ++i)
      ASSERT_EQ(q[i], std::clamp(static_cast<int>(std::nearbyint(x[i] / scale)) + zero, 0, 255)) << x[i] << scale;
  }
}

TEST_P(EveryIntegerIsa, RampedQuantizationEqualsPlainLoops) {
  std::mt19937 random(4);
  for (const Index n : {1, 5, 15, 16, 31, 63, 64, 65, 129, 200}) {
    for (const float ramp : {1.0f / 512, 0.25f, 0.5f}) {
      for (const std::int32_t zero : {0, 12, 255}) {
        const RampedRounding by{3.7f, zero, ramp};
        std::vector<float> x(static_cast<std::size_t>(n + 1));
        for (float& v : x) v = (static_cast<float>(random() % 40000) * 0.01f - 100.0f) / by.factor;
        for (std::size_t i = 0; i < x.size(); i += 3)  // close to the middle between two bytes
          x[i] =
              (static_cast<float>(random() % 300) - 20.5f + (static_cast<float>(random() % 9) - 4) * 1e-3f) / by.factor;
        if (n > 5) {
          x[1] = std::numeric_limits<float>::infinity(), x[2] = -x[1];
          x[4] = std::numeric_limits<float>::quiet_NaN();
        }
        std::vector<std::uint8_t> bytes(x.size(), 77);
        std::vector<std::uint64_t> between(static_cast<std::size_t>((n + 63) / 64 + 1), 5);
        k.quantize_ramped(x.data(), bytes.data(), n, by, between.data());
        EXPECT_EQ(bytes.back(), 77);
        EXPECT_EQ(between.back(), 5U);
        for (Index i = 0; i < (n + 63) / 64 * 64; ++i) {
          const bool found = between[static_cast<std::size_t>(i / 64)] >> (i % 64) & 1;
          if (i >= n) {
            EXPECT_FALSE(found);
            continue;
          }
          const auto u = static_cast<std::size_t>(i);
          if (std::isnan(x[u])) {
            EXPECT_TRUE(found && std::isnan(by.rest(x[u])));
            continue;
          }
          const float v = std::clamp(x[u] * by.factor, by.low(), by.high()), whole = std::nearbyint(v);
          EXPECT_EQ(bytes[u], static_cast<int>(whole) + zero);
          EXPECT_EQ(found, std::fabs(v - whole) > by.flat()) << v;
          EXPECT_EQ(by.rest(x[u]) != 0, found) << v;
          // Half a step more in the middle, and never further from the number than it is from its byte.
          EXPECT_LE(std::fabs(by.rest(x[u])), 0.5f);
          if (ramp == 0.5f) {
            EXPECT_NEAR(whole + by.rest(x[u]), v, 1e-4f);
          }
        }
      }
    }
  }
}

TEST_P(EveryIntegerIsa, AddedRowsEqualPlainLoops) {
  unsigned seed = 900;
  for (const Index n : {1, 3, 4, 10, 16, 17, 31, 48, 63, 70}) {
    for (const Index run : {1, 3, 4, 9}) {
      const Index taps = 2, padded = (run + 3) / 4 * 4;
      const auto b = random_bytes<std::int8_t>(taps * run * n, ++seed);
      std::vector<std::int8_t> packed(static_cast<std::size_t>(integer_packed_size(taps, run, n)));
      integer_pack(b.data(), taps, run, n, packed.data());
      const auto scale = scales(n, ++seed);
      for (Index t = 0; t < taps; ++t) {
        for (Index i = 0; i < run; ++i) {
          std::vector<float> out(static_cast<std::size_t>(n + 2), 1.5f);  // from an unaligned address on
          k.add_row(packed.data(), taps * padded * 16, t * padded + i, 0.25f, scale.data(), out.data() + 1, n);
          EXPECT_EQ(out.front(), 1.5f);
          EXPECT_EQ(out.back(), 1.5f);
          for (Index j = 0; j < n; ++j) {
            const auto u = static_cast<std::size_t>(j);
            EXPECT_FLOAT_EQ(
                out[u + 1],
                1.5f + 0.25f * scale[u] * static_cast<float>(b[static_cast<std::size_t>((t * run + i) * n + j)]));
          }
        }
      }
    }
  }
}

TEST_P(EveryIntegerIsa, RowsEqualPlainLoops) {
  for (const Index n : {1, 5, 16, 31, 64, 100}) {
    std::vector<float> x(static_cast<std::size_t>(n));
    for (Index i = 0; i < n; ++i) x[static_cast<std::size_t>(i)] = static_cast<float>(i - n / 2) * 0.37f;
    x[0] = std::numeric_limits<float>::quiet_NaN();
    if (n > 3) x[1] = std::numeric_limits<float>::infinity(), x[2] = -1e30f, x[3] = -x[1];
    for (const bool is_signed : {false, true}) {
      const int zero = is_signed ? -3 : 12, low = is_signed ? -128 : 0, high = is_signed ? 127 : 255;
      std::vector<std::uint8_t> q(x.size());
      std::vector<float> back(x.size());
      k.quantize(x.data(), q.data(), n, 0.11f, zero, is_signed);
      k.dequantize(q.data(), back.data(), n, 0.11f, zero, is_signed);
      for (std::size_t i = 0; i < x.size(); ++i) {
        const float v = std::isnan(x[i]) ? 0.0f : x[i] / 0.11f;
        const int expected = std::clamp(static_cast<int>(std::nearbyint(std::clamp(v, -1e6f, 1e6f))) + zero, low, high);
        const int found = is_signed ? static_cast<std::int8_t>(q[i]) : q[i];
        EXPECT_EQ(found, expected) << i;
        EXPECT_FLOAT_EQ(back[i], static_cast<float>(found - zero) * 0.11f);
      }
      // Largest and sum over five rows.
      const auto rows = random_bytes<std::uint8_t>(5 * n, static_cast<unsigned>(n));
      std::vector<const void*> at;
      for (Index r = 0; r < 5; ++r) at.push_back(rows.data() + r * n);
      std::vector<std::uint8_t> largest(x.size());
      std::vector<std::int32_t> sums(x.size());
      k.largest(at.data(), 5, largest.data(), n, is_signed);
      k.sum(rows.data(), n, 5, sums.data(), n, is_signed);
      for (Index i = 0; i < n; ++i) {
        int most = -1000, sum = 0;
        for (Index r = 0; r < 5; ++r) {
          const std::uint8_t raw = rows[static_cast<std::size_t>(r * n + i)];
          const int v = is_signed ? static_cast<std::int8_t>(raw) : raw;
          most = std::max(most, v);
          sum += v;
        }
        const std::uint8_t raw = largest[static_cast<std::size_t>(i)];
        EXPECT_EQ(is_signed ? static_cast<std::int8_t>(raw) : raw, most);
        EXPECT_EQ(sums[static_cast<std::size_t>(i)], sum);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, EveryIntegerIsa, ::testing::ValuesIn(available_isas().begin(), available_isas().end()),
                         [](const auto& p) { return std::string(name_of(p.param)); });

}  // namespace
}  // namespace offramp::kernel

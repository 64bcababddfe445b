// The kernels on bfloat16 of the instruction sets that have them, against plain loops on the rounded numbers.
#include "offramp/kernel/bf16.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <vector>

#include "graphs.hpp"
#include "offramp/core/executor.hpp"
#include "offramp/graph/model.hpp"
#include "offramp/kernel/dispatch.hpp"
#include "offramp/kernel/split.hpp"
#include "offramp/layer/conv.hpp"
#include "reference.hpp"

namespace offramp::kernel {
namespace {

TEST(Bf16, GemmEqualsPlainLoops) {
  unsigned seed = 0;
  for (const Isa isa : available_isas()) {
    const Bf16Kernels* k = kernels_for(isa).bf16;
    if (!k) continue;
    for (const Index m : {1, 3, 8, 17, 40}) {
      for (const Index n : {1, 16, 17, 48, 70}) {
        for (const Index run : {1, 2, 9, 32, 37, 64}) {
          for (const Index taps : {1, 3}) {
            const auto x = test::random_floats(m * taps * run, ++seed), w = test::random_floats(taps * run * n, ++seed),
                       bias = test::random_floats(padded_columns(n), ++seed), r = test::random_floats(m * n, ++seed);
            std::vector<std::uint16_t> a(static_cast<std::size_t>((m + 32) * taps * run + 64), 0);
            k->convert(x.data(), a.data(), m * taps * run);
            std::vector<std::uint16_t> b(static_cast<std::size_t>(bf16_packed_size(taps, run, n)));
            bf16_pack(w.data(), n, 1, taps, run, n, 1.0f, b.data());
            std::vector<std::int32_t> offsets;
            for (Index i = 0; i < m; ++i) {
              for (Index t = 0; t < taps; ++t) offsets.push_back(static_cast<std::int32_t>((i * taps + t) * run));
            }
            std::vector<float> c(static_cast<std::size_t>(m * n + 1), -7.0f);
            Bf16Gemm g;
            g.m = m, g.n = n, g.taps = taps, g.run = run, g.a = a.data(), g.lda = run, g.b = b.data();
            if (taps > 1) g.offsets = offsets.data();
            g.bias = bias.data(), g.residual = r.data(), g.ldr = n, g.c = c.data(), g.ldc = n;
            g.activation = Unary::relu;
            g.columns_outside = seed % 2 == 0;
            k->gemm(g);
            for (Index i = 0; i < m; ++i) {
              for (Index j = 0; j < n; ++j) {
                double sum = static_cast<double>(bias[static_cast<std::size_t>(j)]) +
                             static_cast<double>(r[static_cast<std::size_t>(i * n + j)]);
                for (Index l = 0; l < taps * run; ++l)
                  sum += static_cast<double>(
                             bf16_to_float(float_to_bf16(x[static_cast<std::size_t>(i * taps * run + l)]))) *
                         static_cast<double>(bf16_to_float(float_to_bf16(w[static_cast<std::size_t>(l * n + j)])));
                ASSERT_NEAR(static_cast<double>(c[static_cast<std::size_t>(i * n + j)]), std::max(0.0, sum), 2e-4)
                    << name_of(isa) << " " << m << "x" << n << "x" << taps << "x" << run;
              }
            }
            EXPECT_EQ(c.back(), -7.0f);
          }
        }
      }
    }
  }
}

// Rows or columns shared by threads give the same numbers.
TEST(Bf16, SplitProductsAreTheSame) {
  ThreadPool pool(3);
  for (const Isa isa : available_isas()) {
    const Bf16Kernels* k = kernels_for(isa).bf16;
    if (!k) continue;
    for (const auto& [m, n] : {std::pair<Index, Index>{301, 70}, {9, 1000}}) {
      const Index run = 64;
      const auto x = test::random_floats(m * run, 1), w = test::random_floats(run * n, 2),
                 bias = test::random_floats(padded_columns(n), 3), r = test::random_floats(m * n, 4);
      std::vector<std::uint16_t> a(static_cast<std::size_t>((m + 32) * run + 64), 0),
          b(static_cast<std::size_t>(bf16_packed_size(1, run, n)));
      k->convert(x.data(), a.data(), m * run);
      bf16_pack(w.data(), n, 1, 1, run, n, 1.0f, b.data());
      std::vector<float> alone(static_cast<std::size_t>(m * n)), shared(alone);
      Bf16Gemm g;
      g.m = m, g.n = n, g.run = run, g.a = a.data(), g.lda = run, g.b = b.data();
      g.bias = bias.data(), g.residual = r.data(), g.ldr = n, g.c = alone.data(), g.ldc = n;
      k->gemm(g);
      g.c = shared.data();
      bf16_gemm(g, kernels_for(isa), ExecutorRef(pool));
      EXPECT_EQ(alone, shared) << name_of(isa) << " " << m << "x" << n;
    }
  }
}

#if OFFRAMP_X86_TARGETS
// AMD's cores do twice as many multiply-adds of bfloat16 as of floats, tiles many times as many.
TEST(Bf16, ConvolutionsTakeItWhereItIsFaster) {
  for (const Isa isa : available_isas()) {
    const Kernels& kernels = kernels_for(isa);
    if (!kernels.bf16 || !(kernels.bf16->has_tiles || __builtin_cpu_is("amd"))) continue;
    PrepareOptions options{kernels};
    for (const auto& [in, out, size] : {std::array<Index, 3>{64, 256, 56}, {1024, 256, 14}, {2048, 512, 7}}) {
      Window window;
      window.in = window.out = {1, size, size};
      const auto w = test::random_floats(in * out, 1);
      for (const bool asked : {false, true}) {
        options.bf16 = asked;
        const ConvPlan plan(window, in, out, 1, w.data(), nullptr, {}, options);
        EXPECT_EQ(plan.algorithm(), asked ? "bf16 gemm" : "gemm") << name_of(isa) << " " << in << " to " << out;
      }
    }
  }
}
#endif

TEST(Bf16, NetworksAnswerNearlyTheSame) {
  const std::vector<Tensor> in{test::random_tensor({5, 3, 8, 8}, 5)};
  const auto expected = Model(test::residual_network()).run(in);
  for (const Isa isa : available_isas()) {
    ModelOptions o;
    o.isa = isa;
    o.bf16 = true;
    const Model m(test::residual_network(), o);
    const bool uses = std::any_of(m.layers().begin(), m.layers().end(),
                                  [](const LayerInfo& l) { return l.algorithm.starts_with("bf16"); });
    EXPECT_EQ(uses, kernels_for(isa).bf16 != nullptr) << name_of(isa);
    const auto found = m.run(in);
    for (std::size_t i = 0; i < found.size(); ++i) {
      const auto v = expected[i].values<float>();
      // Winograd's tiles of 4 x 4 are worth some 2 % in bfloat16, plain products 0.3 %.
      EXPECT_LT(test::relative_error(found[i].values<float>(), std::vector<double>(v.begin(), v.end())), 5e-2);
    }
  }
}

}  // namespace
}  // namespace offramp::kernel

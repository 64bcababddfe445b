// The matrix kernel on the shapes that networks have and elementary functions, for each instruction set; GFLOP/s in the
// column FLOPS, or elements a second in items_per_second.
#include <benchmark/benchmark.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "offramp/kernel/dispatch.hpp"
#include "offramp/kernel/pack.hpp"

namespace {

using namespace offramp;

void gemm(benchmark::State& state, Isa isa) {
  const kernel::Kernels& k = kernel::kernels_for(isa);
  const Index m = state.range(0), n = state.range(1), depth = state.range(2);
  const std::vector<float> a(static_cast<std::size_t>(m * depth), 0.5f), b(static_cast<std::size_t>(depth * n), 0.25f);
  std::vector<float> packed(static_cast<std::size_t>(kernel::packed_size(depth, n))),
      c(static_cast<std::size_t>(m * n));
  kernel::pack(b.data(), n, 1, depth, n, 1.0f, packed.data());
  kernel::Gemm g;
  g.m = m, g.n = n, g.run = depth, g.a = a.data(), g.lda = depth, g.b = packed.data(), g.c = c.data(), g.ldc = n;
  g.columns_outside = kernel::prefer_columns_outside(m, n, depth);
  for (auto _ : state) {
    k.gemm(g);
    benchmark::ClobberMemory();
  }
  state.counters["FLOPS"] =
      benchmark::Counter(static_cast<double>(2 * m * n * depth), benchmark::Counter::kIsIterationInvariantRate);
}

// f(kernels, in, out, count) on numbers from -6 to 6.
template <class F>
void elements(benchmark::State& state, Isa isa, F&& f) {
  constexpr Index count = 16384;
  std::vector<float> in, out(count);
  for (Index i = 0; i < count; ++i) in.push_back(-6 + 12 * static_cast<float>(i) / count);
  for (auto _ : state) {
    f(kernel::kernels_for(isa), in.data(), out.data(), count);
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * count);
}

const bool registered = [] {
  const std::vector<std::pair<const char*, kernel::Unary>> functions{{"exp", kernel::Unary::exp},
                                                                     {"tanh", kernel::Unary::tanh},
                                                                     {"sigmoid", kernel::Unary::sigmoid},
                                                                     {"erf", kernel::Unary::erf},
                                                                     {"gelu", kernel::Unary::gelu}};
  for (const Isa isa : available_isas()) {
    auto* b = benchmark::RegisterBenchmark(("gemm/" + std::string(name_of(isa))).c_str(),
                                           [isa](benchmark::State& s) { gemm(s, isa); });
    for (const auto& [m, n, k] : std::vector<std::array<Index, 3>>{{512, 512, 512},
                                                                   {3136, 64, 576},
                                                                   {784, 128, 1152},
                                                                   {196, 256, 2304},
                                                                   {49, 512, 4608},
                                                                   {1024, 16, 144},
                                                                   {256, 32, 288},
                                                                   {64, 64, 576},
                                                                   {128, 256, 256},
                                                                   {197, 2304, 768},
                                                                   {1, 512, 784},
                                                                   {32, 512, 784}}) {
      b->Args({m, n, k});
    }
    for (const auto& [name, f] : functions) {
      benchmark::RegisterBenchmark(
          (std::string(name) + "/" + std::string(name_of(isa))).c_str(), [isa, f = f](benchmark::State& s) {
            elements(s, isa,
                     [f](const auto& k, const float* in, float* out, Index n) { k.unary(f, in, out, n, 0, 0); });
          });
    }
    benchmark::RegisterBenchmark(("softmax/" + std::string(name_of(isa))).c_str(), [isa](benchmark::State& s) {
      elements(s, isa, [](const auto& k, const float* in, float* out, Index n) {
        k.softmax(in, out, n / 128, 128, false);  // rows of 128
      });
    });
  }
  return true;
}();

}  // namespace

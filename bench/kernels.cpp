// The matrix kernel, depthwise convolutions and those with stride 2 on the shapes that networks have, elementary
// functions, quantization and pooling, for each instruction set; GFLOP/s in the column FLOPS, or elements a second in
// items_per_second.
#include <benchmark/benchmark.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "offramp/core/tensor.hpp"
#include "offramp/kernel/dispatch.hpp"
#include "offramp/kernel/pack.hpp"
#include "offramp/layer/conv.hpp"

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

// An image of `range(0)` squared with `range(1)` channels, windows of `range(2)` squared, `range(3)` apart, ReLU6.
void depthwise(benchmark::State& state, Isa isa) {
  kernel::Depthwise d;
  d.in_h = d.in_w = state.range(0), d.channels = state.range(1), d.kernel_h = d.kernel_w = state.range(2);
  d.stride_h = d.stride_w = state.range(3), d.pad_top = d.pad_left = d.kernel_h / 2;
  d.out_h = d.out_w = (d.in_h - 1) / d.stride_h + 1;
  const Index outputs = d.out_h * d.out_w * d.channels, taps = d.kernel_h * d.kernel_w;
  const Tensor in(DType::f32, {d.in_h * d.in_w * d.channels}), weights(DType::f32, {taps * d.channels}),
      bias(DType::f32, {d.channels});
  Tensor out(DType::f32, {outputs});
  d.in = in.view().f32(), d.weights = weights.view().f32(), d.bias = bias.view().f32();
  d.out = static_cast<float*>(out.mutable_data());
  d.activation = kernel::Unary::clip, d.beta = 6;
  for (auto _ : state) {
    kernel::kernels_for(isa).depthwise(d);
    benchmark::ClobberMemory();
  }
  state.counters["FLOPS"] =
      benchmark::Counter(static_cast<double>(2 * taps * outputs), benchmark::Counter::kIsIterationInvariantRate);
}

// A 3 x 3 convolution of `range(3)` images of `range(0)` squared, stride 2, `range(1)` channels to `range(2)`, by tiles
// of `range(4)` squared or, where that is 0, by the indirect product.
void strided_convolution(benchmark::State& state, Isa isa) {
  const Index size = state.range(0), from = state.range(1), to = state.range(2), batch = state.range(3);
  Window w;
  w.in = {1, size, size}, w.out = {1, size / 2, size / 2}, w.kernel = {1, 3, 3}, w.stride = {1, 2, 2};
  w.begin = {0, 1, 1};
  const ConvMethod method{state.range(4)};
  PrepareOptions options{kernel::kernels_for(isa)};
  options.conv_method = &method;
  const Tensor weights(DType::f32, {to * from * 9}), in(DType::f32, {batch * size * size * from});
  Tensor out(DType::f32, {batch * w.out_count() * to});
  const ConvPlan plan(w, from, to, 1, weights.view().f32(), nullptr, {}, options);
  const auto scratch = allocate_aligned(plan.scratch_bytes(batch));
  for (auto _ : state) {
    plan.forward(in.view().f32(), nullptr, static_cast<float*>(out.mutable_data()), batch, scratch.get(),
                 options.kernels);
    benchmark::ClobberMemory();
  }
  state.counters["FLOPS"] = benchmark::Counter(static_cast<double>(plan.cost(batch, false).flops),
                                               benchmark::Counter::kIsIterationInvariantRate);
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

// Windows of `range(2)` squared, half as far apart where they overlap as maxima, side by side as means.
void pool(benchmark::State& state, Isa isa, bool maximum) {
  const Index size = state.range(0), channels = state.range(1), window = state.range(2);
  kernel::Pool2d p;
  p.maximum = maximum;
  p.channels = channels, p.in_h = p.in_w = size;
  p.kernel_h = p.kernel_w = window;
  p.stride_h = p.stride_w = maximum ? (window + 1) / 2 : window;
  p.pad_top = p.pad_left = p.pad_bottom = p.pad_right = maximum ? window / 2 : 0;
  p.out_h = p.out_w = (size + 2 * p.pad_top - window) / p.stride_h + 1;
  Tensor in(DType::f32, {size * size * channels}), out(DType::f32, {p.out_h * p.out_w * channels});
  p.in = in.view().f32(), p.out = static_cast<float*>(out.mutable_data());
  for (auto _ : state) {
    kernel::kernels_for(isa).pool2d(p);
    benchmark::ClobberMemory();
  }
}

// Means and maxima of an image's cells, `range(2)` across, as exit heads read them.
void grid_pool(benchmark::State& state, Isa isa) {
  const Index size = state.range(0), channels = state.range(1), grid = state.range(2), cell = size / grid;
  const Tensor in(DType::f32, {size * size * channels});
  Tensor out(DType::f32, {2 * channels});
  auto* sum = static_cast<float*>(out.mutable_data());
  for (auto _ : state) {
    for (Index k = 0; k < grid * grid; ++k) {
      kernel::kernels_for(isa).pool_cell(in.view().f32() + (k / grid * size + k % grid) * cell * channels,
                                         size * channels, cell, cell, channels, sum, sum + channels);
    }
    benchmark::ClobberMemory();
  }
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
    b = benchmark::RegisterBenchmark(("depthwise/" + std::string(name_of(isa))).c_str(),
                                     [isa](benchmark::State& s) { depthwise(s, isa); });
    for (const auto& [size, channels, window, stride] : std::vector<std::array<Index, 4>>{{112, 32, 3, 1},
                                                                                          {112, 96, 3, 2},
                                                                                          {56, 144, 3, 1},
                                                                                          {28, 192, 3, 1},
                                                                                          {28, 192, 3, 2},
                                                                                          {14, 384, 3, 1},
                                                                                          {14, 576, 3, 2},
                                                                                          {7, 960, 3, 1},
                                                                                          {56, 144, 5, 2},
                                                                                          {28, 240, 5, 1},
                                                                                          {14, 672, 5, 1},
                                                                                          {14, 672, 5, 2},
                                                                                          {7, 1152, 5, 1}}) {
      b->Args({size, channels, window, stride});
    }
    b = benchmark::RegisterBenchmark(("strided_convolution/" + std::string(name_of(isa))).c_str(),
                                     [isa](benchmark::State& s) { strided_convolution(s, isa); });
    for (const auto& [size, from, to, batch] : std::vector<std::array<Index, 4>>{
             {32, 16, 32, 8}, {16, 32, 64, 8}, {56, 64, 128, 1}, {28, 128, 256, 1}, {14, 256, 512, 1}}) {
      for (const Index m : {0, 2, 4}) b->Args({size, from, to, batch, m});
    }
    const auto add = [isa](const char* name, auto&& run, const std::array<Index, 3>& sizes) {
      benchmark::RegisterBenchmark((std::string(name) + "/" + std::string(name_of(isa))).c_str(), run)
          ->Args({sizes[0], sizes[1], sizes[2]});
    };
    const auto maximum = [isa](benchmark::State& s) { pool(s, isa, true); };
    const auto mean = [isa](benchmark::State& s) { pool(s, isa, false); };
    const auto grid = [isa](benchmark::State& s) { grid_pool(s, isa); };
    add("max_pool", maximum, {112, 64, 3});
    for (const Index window : {2, 4}) add("average_pool", mean, {28, 16, window});
    add("grid_pool", grid, {28, 16, 2});
    add("grid_pool", grid, {7, 96, 1});
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
    benchmark::RegisterBenchmark(("quantize/" + std::string(name_of(isa))).c_str(), [isa](benchmark::State& s) {
      elements(s, isa, [](const auto& k, const float* in, float* out, Index n) {
        k.integer->quantize(in, out, n, 0.05f, 120, false);
      });
    });
  }
  return true;
}();

}  // namespace

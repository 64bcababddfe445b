// Our packed matrix kernel in turn with oneDNN and OpenBLAS (where CMake found them) on the shapes that networks have:
// GFLOP/s, the share of the multiply-add peak, and the ratio to the better peer. The peak takes turns with the others
// and does as many multiply-adds as they, for a core that multiplies without a pause lowers its clock. One thread:
//   OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 taskset -c 0 build/bench/bench/gemm_peers
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "offramp/core/tensor.hpp"
#include "offramp/kernel/dispatch.hpp"
#include "offramp/kernel/pack.hpp"
#ifdef OFFRAMP_HAS_ONEDNN
#include <dnnl.h>
#endif
#ifdef OFFRAMP_HAS_OPENBLAS
extern "C" void cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float* a,
                            int lda, const float* b, int ldb, float beta, float* c, int ldc);
#endif

namespace {

using namespace offramp;
using clock_type = std::chrono::steady_clock;

template <class F>
double seconds_of(F&& f) {
  const auto start = clock_type::now();
  f();
  return std::chrono::duration<double>(clock_type::now() - start).count();
}

// The median of rounds in turn: every contender runs twice a round, so that all meet the same machine, and the second
// run counts, so that none finds its operands driven from the caches by the others.
template <class... F>
std::vector<double> median_in_turn(double seconds, F&&... contenders) {
  std::vector<std::vector<double>> taken(sizeof...(F));
  const auto end = clock_type::now() + std::chrono::duration<double>(seconds);
  for (int rounds = 0; rounds < 9 || clock_type::now() < end; ++rounds) {
    std::size_t i = 0;
    ((contenders(), taken[i++].push_back(seconds_of(contenders))), ...);
  }
  std::vector<double> median;
  for (auto& t : taken) {
    std::nth_element(t.begin(), t.begin() + static_cast<std::ptrdiff_t>(t.size() / 2), t.end());
    median.push_back(t[t.size() / 2]);
  }
  return median;
}

Tensor random(Index n) {
  Tensor t(DType::f32, {n});
  auto* x = static_cast<float*>(t.mutable_data());
  for (Index i = 0; i < n; ++i) x[i] = static_cast<float>((i * 7919) % 1000) / 1000.0f - 0.5f;
  return t;
}

}  // namespace

int main() {
  const kernel::Kernels& kernels = kernel::kernels_for(best_isa());
  volatile float sink = 0;
  std::printf("%s, GFLOP/s\n%-22s %8s %8s %7s %8s %8s %7s\n", std::string(name_of(best_isa())).c_str(), "M x N x K",
              "peak", "ours", "of peak", "oneDNN", "OpenBLAS", "ratio");
  struct Case {
    Index m, n, k;
  };
  double product = 1;
  int count = 0, ahead = 0;
  for (const auto& [m, n, k] :
       std::vector<Case>{{512, 512, 512},  {1024, 1024, 1024}, {2048, 2048, 2048}, {12544, 64, 147}, {3136, 64, 576},
                         {784, 128, 1152}, {196, 256, 2304},   {49, 512, 4608},    {3136, 64, 64},   {3136, 256, 64},
                         {3136, 64, 256},  {784, 512, 128},    {784, 128, 512},    {196, 1024, 256}, {196, 256, 1024},
                         {49, 2048, 512},  {49, 512, 2048},    {1024, 16, 144},    {256, 32, 288},   {64, 64, 576},
                         {12544, 96, 16},  {3136, 24, 144},    {49, 1280, 320},    {128, 256, 256},  {128, 1024, 256},
                         {128, 256, 1024}, {197, 2304, 768},   {197, 3072, 768},   {197, 768, 3072}, {1, 512, 784},
                         {32, 512, 784},   {1, 4096, 25088},   {32, 4096, 25088}}) {
    const Tensor left = random(m * k), right = random(k * n);
    Tensor packed(DType::f32, {kernel::packed_size(k, n)}), out(DType::f32, {m * n}), other(DType::f32, {m * n});
    kernel::pack(right.view().f32(), n, 1, k, n, 1.0f, static_cast<float*>(packed.mutable_data()));
    kernel::Gemm g;
    g.m = m, g.n = n, g.run = k, g.a = left.view().f32(), g.lda = k, g.b = packed.view().f32();
    g.c = static_cast<float*>(out.mutable_data()), g.ldc = n;
    g.columns_outside = kernel::prefer_columns_outside(m, n, k);
    const Index each = kernels.lanes * 12;  // multiply-adds of a step
    const auto peak = [&, steps = m * n * k / each + 1] { sink = sink + kernels.multiply_adds(steps, 0.5f); };
    const auto ours = [&] { kernels.gemm(g); };
    [[maybe_unused]] auto* c = static_cast<float*>(other.mutable_data());
    const auto onednn = [&] {
#ifdef OFFRAMP_HAS_ONEDNN
      dnnl_sgemm('N', 'N', m, n, k, 1.0f, left.view().f32(), k, right.view().f32(), n, 0.0f, c, n);
#endif
    };
    const auto openblas = [&] {
#ifdef OFFRAMP_HAS_OPENBLAS
      cblas_sgemm(101, 111, 111, static_cast<int>(m), static_cast<int>(n), static_cast<int>(k), 1.0f, left.view().f32(),
                  static_cast<int>(k), right.view().f32(), static_cast<int>(n), 0.0f, c, static_cast<int>(n));
#endif
    };
    const auto median = median_in_turn(0.4, peak, ours, onednn, openblas);
    const double flops = 2 * static_cast<double>(m * n * k);
    bool has_peer = false;
    double peer = 1e9;
    const double own = median[1];
    std::string text[2] = {"-", "-"};
    [[maybe_unused]] const auto take = [&](std::size_t i) {
      has_peer = true;
      peer = std::min(peer, median[i]);
      text[i - 2] = std::to_string(static_cast<int>(flops / median[i] / 1e9));
    };
#ifdef OFFRAMP_HAS_ONEDNN
    take(2);
#endif
#ifdef OFFRAMP_HAS_OPENBLAS
    take(3);
#endif
    const double ratio = has_peer ? peer / own : 1;
    product *= ratio;
    ++count;
    ahead += ratio > 1;
    std::printf("%-22s %8.0f %8.0f %6.0f%% %8s %8s %7.2f\n",
                (std::to_string(m) + " x " + std::to_string(n) + " x " + std::to_string(k)).c_str(),
                flops / median[0] / 1e9, flops / own / 1e9, 100 * median[0] / own, text[0].c_str(), text[1].c_str(),
                ratio);
  }
  std::printf("ahead of the better peer on %d of %d shapes, geometric mean of the ratios %.2f\n", ahead, count,
              std::pow(product, 1.0 / count));
}

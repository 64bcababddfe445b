// Our packed matrix kernel in turn with oneDNN, OpenBLAS, XNNPACK (where CMake found them) and Eigen (which takes the
// vectors that the compiler's flags allow) on the shapes that networks have: GFLOP/s, the share of the multiply-add
// peak, and the ratio to the best peer. XNNPACK packs the right side beforehand as we do, the others get it plain. The
// peak takes turns with the others and does as many multiply-adds as they, for a core that multiplies without a pause
// lowers its clock. One thread:
//   OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 taskset -c 0 build/bench/bench/gemm_peers
#include <Eigen/Core>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <utility>
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
#ifdef OFFRAMP_HAS_XNNPACK
#include <xnnpack.h>
#endif

namespace {

using namespace offramp;
using clock_type = std::chrono::steady_clock;

struct Contender {
  std::string name;
  std::function<void()> run;
};

// The median of rounds in turn: every contender runs twice a round, so that all meet the same machine, and the second
// run counts, so that none finds its operands driven from the caches by the others. Every other round goes backwards:
// who comes after narrow vectors finds a core that only begins to make wide ones fast.
std::vector<double> median_in_turn(double seconds, const std::vector<Contender>& contenders) {
  std::vector<std::vector<double>> taken(contenders.size());
  const auto end = clock_type::now() + std::chrono::duration<double>(seconds);
  for (int rounds = 0; rounds < 9 || clock_type::now() < end; ++rounds) {
    for (std::size_t turn = 0; turn < contenders.size(); ++turn) {
      const std::size_t i = rounds % 2 == 0 ? turn : contenders.size() - 1 - turn;
      contenders[i].run();
      const auto start = clock_type::now();
      contenders[i].run();
      taken[i].push_back(std::chrono::duration<double>(clock_type::now() - start).count());
    }
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

bool alike(const Tensor& a, const Tensor& b, float tolerance) {
  const float *x = a.view().f32(), *y = b.view().f32();
  return std::equal(x, x + a.view().count(), y, [=](float u, float v) { return std::fabs(u - v) <= tolerance; });
}

// C = A B, row after row, by every peer that is there.
std::vector<Contender> peers(Index m, Index n, Index k, const float* a, const float* b, float* c) {
  std::vector<Contender> all;
#ifdef OFFRAMP_HAS_ONEDNN
  all.push_back({"oneDNN", [=] { dnnl_sgemm('N', 'N', m, n, k, 1.0f, a, k, b, n, 0.0f, c, n); }});
#endif
#ifdef OFFRAMP_HAS_OPENBLAS
  all.push_back({"OpenBLAS", [=] {
                   const auto rows = static_cast<int>(m), columns = static_cast<int>(n), depth = static_cast<int>(k);
                   cblas_sgemm(101, 111, 111, rows, columns, depth, 1.0f, a, depth, b, columns, 0.0f, c, columns);
                 }});
#endif
#ifdef OFFRAMP_HAS_XNNPACK
  xnn_operator_t made = nullptr;
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const auto rows = static_cast<std::size_t>(m), columns = static_cast<std::size_t>(n),
             depth = static_cast<std::size_t>(k);
  if (xnn_initialize(nullptr) == xnn_status_success &&
      xnn_create_fully_connected_nc_f32(depth, columns, depth, columns, b, nullptr, -infinity, infinity,
                                        XNN_FLAG_TRANSPOSE_WEIGHTS, &made) == xnn_status_success) {
    const std::shared_ptr<xnn_operator> product(made, xnn_delete_operator);
    xnn_setup_fully_connected_nc_f32(made, rows, a, c, nullptr);
    all.push_back({"XNNPACK", [product] { xnn_run_operator(product.get(), nullptr); }});
  }
#endif
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  all.push_back({"Eigen", [=] {
                   Eigen::Map<Matrix>(c, m, n).noalias() =
                       Eigen::Map<const Matrix>(a, m, k) * Eigen::Map<const Matrix>(b, k, n);
                 }});
  return all;
}

}  // namespace

int main() {
  const kernel::Kernels& kernels = kernel::kernels_for(best_isa());
  volatile float sink = 0;
  double product = 1;
  int count = 0;
  std::map<std::string, int> ahead;  // of each peer, and of all
  struct Case {
    Index m, n, k;
  };
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
    const Index steps = m * n * k / (kernels.lanes * 12) + 1;
    std::vector<Contender> contenders{{"peak", [&, steps] { sink = sink + kernels.multiply_adds(steps, 0.5f); }},
                                      {"ours", [&] { kernels.gemm(g); }}};
    for (Contender& p :
         peers(m, n, k, left.view().f32(), right.view().f32(), static_cast<float*>(other.mutable_data()))) {
      kernels.gemm(g);
      p.run();
      if (!alike(out, other, 1e-4f * std::sqrt(static_cast<float>(k)))) {
        std::fprintf(stderr, "%s computes another product\n", p.name.c_str());
        return 1;
      }
      contenders.push_back(std::move(p));
    }
    // The same C for all: one that the others do not write would be the coldest.
    g.c = static_cast<float*>(other.mutable_data());
    const auto median = median_in_turn(0.4, contenders);
    if (count++ == 0) {
      std::printf("%s, GFLOP/s\n%-22s", std::string(name_of(best_isa())).c_str(), "M x N x K");
      for (const Contender& c : contenders) std::printf(" %8s", c.name.c_str());
      std::printf(" %8s %7s\n", "of peak", "ratio");
    }
    std::printf("%-22s", (std::to_string(m) + " x " + std::to_string(n) + " x " + std::to_string(k)).c_str());
    const double flops = 2 * static_cast<double>(m * n * k), own = median[1];
    double best = std::numeric_limits<double>::infinity();
    for (std::size_t i = 0; i < median.size(); ++i) {
      std::printf(" %8.0f", flops / median[i] / 1e9);
      if (i < 2) continue;
      best = std::min(best, median[i]);
      ahead[contenders[i].name] += own < median[i];
    }
    std::printf(" %7.0f%% %7.2f\n", 100 * median[0] / own, best / own);
    product *= best / own;
    ahead["all"] += own < best;
  }
  for (const auto& [name, times] : ahead) std::printf("ahead of %s on %d of %d shapes\n", name.c_str(), times, count);
  std::printf("geometric mean of the ratios to the best peer %.2f\n", std::pow(product, 1.0 / count));
}

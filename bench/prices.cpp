// What stages and heads of networks with exits cost as it is modelled and as it is measured: prices MODEL.onnx...
//
// For each exit the share of the full network that its stage and its head are: in nominal FLOPs, by `modelled_prices`,
// by `measured_prices` (random samples). Last, how far modelled shares are off, over all stages and heads of all files.
#include "offramp/calibrate/prices.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <numeric>
#include <random>
#include <vector>

#include "offramp/onnx/load.hpp"

namespace {

using namespace offramp;

struct Spread {
  double squares = 0;
  int count = 0;
};

void report(const char* file, Spread& off) {
  const Model m = load_onnx(file);
  std::vector<float> samples(static_cast<std::size_t>(m.sample_size() * 64));
  std::mt19937 engine(1);
  std::uniform_real_distribution<float> pixel(0, 1);
  for (float& x : samples) x = pixel(engine);
  const ExitPrices modelled = modelled_prices(m), measured = measured_prices(m, samples);
  const auto full = [](const ExitPrices& p) { return std::accumulate(p.stages.begin(), p.stages.end(), 0.0); };
  const double of_modelled = full(modelled), of_measured = full(measured);
  const auto nominal = static_cast<double>(m.full_cost().flops);
  std::printf("%s: %.4f ms\n  %-8s %21s %30s\n  %-8s%10s%10s%10s  %10s%10s%10s\n", file, of_measured, "", "stage",
              "head", "exit", "FLOPs", "modelled", "measured", "FLOPs", "modelled", "measured");
  for (std::size_t k = 0; k < modelled.stages.size(); ++k) {
    const auto e = static_cast<Index>(k);
    const auto row = [&](const Cost& cost, double model, double ms) {
      std::printf("%10.4f%10.4f%10.4f  ", static_cast<double>(cost.flops) / nominal, model / of_modelled,
                  ms / of_measured);
      if (model == 0 || ms == 0) return;
      const double error = model / of_modelled / (ms / of_measured) - 1;
      off.squares += error * error, ++off.count;
    };
    std::printf("  %-8zu", k);
    row(m.stage_cost(e), modelled.stages[k], measured.stages[k]);
    if (k + 1 < modelled.stages.size()) row(m.head_cost(e), modelled.heads[k], measured.heads[k]);
    std::printf("\n");
  }
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 2) {
    std::fprintf(stderr, "usage: prices MODEL.onnx...\n");
    return 2;
  }
  Spread off;
  for (int i = 1; i < argc; ++i) report(argv[i], off);
  std::printf("modelled shares are off by %.1f %% (root mean square of %d stages and heads)\n",
              100 * std::sqrt(off.squares / std::max(1, off.count)), off.count);
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "prices: %s\n", e.what());
  return 1;
}

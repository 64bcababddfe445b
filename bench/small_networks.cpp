// Nanoseconds a step of small networks over a stream, on the shapes that RTNeural's repository measures, for every
// instruction set: small_networks
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include "offramp/stream/stream.hpp"

namespace {

using namespace offramp;
using stream::Conv1d, stream::Dense, stream::Gru, stream::Lstm;
constexpr auto tanh_of = kernel::Unary::tanh;

std::vector<float> random(Index n) {
  static unsigned x = 1;
  std::vector<float> v(static_cast<std::size_t>(n));
  for (float& y : v) {
    x = x * 1664525 + 1013904223;
    y = (static_cast<float>(x >> 8) / 16777216.0f - 0.5f) * 0.5f;
  }
  return v;
}
template <Index In, Index Out, kernel::Unary F = kernel::Unary::identity>
Dense<In, Out, F> dense() {
  return {random(In * Out), random(Out)};
}
template <Index In, Index Out, Index Kernel, Index Dilation = 1, kernel::Unary F = kernel::Unary::identity>
Conv1d<In, Out, Kernel, Dilation, F> conv() {
  return {random(In * Out * Kernel), random(Out)};
}
template <Index In, Index H>
Gru<In, H> gru() {
  return {random(3 * H * In), random(3 * H * H), random(6 * H)};
}
template <Index In, Index H>
Lstm<In, H> lstm() {
  return {random(4 * H * In), random(4 * H * H), random(8 * H)};
}

float sink = 0;

// The best of several runs over the same samples; each step's input hangs on the step before, as in a live stream.
template <class... Layers>
void measure(const char* name, const Layers&... layers) {
  std::printf("%-44s", name);
  for (const Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (isa > best_isa()) continue;
    const Stream<Layers...> net(isa, layers...);
    auto state = net.make_state();
    const auto samples = random(Stream<Layers...>::inputs);
    auto x = samples;
    constexpr int steps = 20000;
    double best = 1e9;
    for (int round = 0; round < 40; ++round) {
      const auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < steps; ++i) {
        const auto y =
            net.step(state, std::span(x).template first<static_cast<std::size_t>(Stream<Layers...>::inputs)>());
        x[0] = samples[0] + y[0] * 1e-3f;
      }
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / steps);
    }
    sink += x[0];
    std::printf(" %9.1f", best * 1e9);
  }
  std::printf("\n");
}

}  // namespace

int main() {
  std::printf("%-44s", "nanoseconds a step");
  for (const Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512})
    if (isa <= best_isa()) std::printf(" %9s", std::string(name_of(isa)).c_str());
  std::printf("\n");
  measure("GRU 16, dense 1", gru<1, 16>(), dense<16, 1>());
  measure("GRU 32, dense 1", gru<1, 32>(), dense<32, 1>());
  measure("GRU 32 to 64, dense 1", gru<32, 64>(), dense<64, 1>());
  measure("LSTM 32, dense 1", lstm<1, 32>(), dense<32, 1>());
  measure("dense 64, 64, 64, 1", dense<64, 64>(), dense<64, 64>(), dense<64, 1>());
  measure("dense 8, conv 4, GRU 8, dense 1", dense<1, 8, tanh_of>(), conv<8, 4, 3, 2, tanh_of>(), gru<4, 8>(),
          dense<8, 1>());
  measure("three conv1d of 16 channels, kernel 3", conv<16, 16, 3>(), conv<16, 16, 3>(), conv<16, 16, 3>());
  return sink == 12345.0f;
}

// A small recurrent network over an audio stream, one sample at a time, with a layer of the user's own in front.
#include <cmath>
#include <cstdio>
#include <span>

#include "offramp/stream/stream.hpp"
#include "random_weights.hpp"

// Takes the constant part away: y[t] = x[t] - x[t - 1] + 0.995 y[t - 1].
struct DcBlocker {
  static constexpr offramp::Index inputs = 1, outputs = 1;
  struct State {
    float x = 0, y = 0;
  };
  void step(State& s, const float* in, float* out) const noexcept {
    s.y = *in - s.x + 0.995f * s.y;
    s.x = *in;
    *out = s.y;
  }
};

int main() {
  using namespace offramp;
  const Stream net(
      DcBlocker{},
      stream::Gru<1, 16>(random_weights(48, 1, 1), random_weights(48 * 16, 16, 2), random_weights(96, 1, 3)),
      stream::Dense<16, 1>(random_weights(16, 16, 4), {}));

  // Two voices through one network: each has a state of its own.
  auto left = net.make_state(), right = net.make_state();
  float l = 0, r = 0;
  for (int t = 0; t < 1000; ++t) {
    const float tone = std::sin(0.05f * static_cast<float>(t)), raised = tone + 1;
    l = net.step(left, std::span<const float, 1>(&tone, 1))[0];
    r = net.step(right, std::span<const float, 1>(&raised, 1))[0];
  }
  std::printf("after 1000 samples: %.4f, and with a constant added to the input %.4f\n", static_cast<double>(l),
              static_cast<double>(r));
  return std::isfinite(l) && std::fabs(l - r) < 0.05f ? 0 : 1;
}

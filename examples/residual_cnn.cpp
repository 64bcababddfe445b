// A small residual CNN as a C++ type: residual blocks, a projecting shortcut, a branch, and two early exits.
#include <cstdio>

#include "offramp/exit/heads.hpp"
#include "offramp/network/network.hpp"
#include "offramp/policy/combine.hpp"
#include "offramp/policy/margin.hpp"
#include "offramp/policy/patience.hpp"
#include "offramp/session/session.hpp"
#include "random_weights.hpp"

int main() {
  using namespace offramp;
  unsigned seed = 0;
  const auto conv = [&](std::size_t out, std::size_t in, std::size_t k) {
    return random_weights(out * in * k * k, in * k * k, ++seed);
  };
  const auto dense = [&](std::size_t out, std::size_t in) { return random_weights(out * in, in, ++seed); };
  Network net(input<3, 32, 32>,  //
              Conv2d<3, 16, 3>(conv(16, 3, 3), {}), Relu(),
              Residual(Chain(Conv2d<16, 16, 3>(conv(16, 16, 3), {}), Relu(), Conv2d<16, 16, 3>(conv(16, 16, 3), {}))),
              Relu(), Exit(pooled_linear<16, 10>(dense(10, 16), {})),
              Residual(Chain(Conv2d<16, 32, 3, 2>(conv(32, 16, 3), {}), Relu(), Conv2d<32, 32, 3>(conv(32, 32, 3), {})),
                       Conv2d<16, 32, 1, 2, 0>(conv(32, 16, 1), {})),
              Relu(), Exit(conv_pooled_linear<32, 32, 10>(conv(32, 32, 3), {}, dense(10, 32), {})),
              Branch(Conv2d<32, 16, 1>(conv(16, 32, 1), {}), Conv2d<32, 16, 3>(conv(16, 32, 3), {})), Relu(),
              GlobalAveragePool(), Dense<32, 10>(dense(10, 32), {}));

  Session session(net, Patience{1} || Margin{{0.6f, 0.5f}});
  const auto image = random_weights(3 * 32 * 32, 2, 99);
  const Prediction early = session.predict(image)[0];
  std::printf("class %ld at exit %ld after %ld of %ld FLOPs\n", static_cast<long>(early.label),
              static_cast<long>(early.exit), static_cast<long>(early.cost.flops),
              static_cast<long>(early.full_cost.flops));
  const Prediction full = session.predict_full(image)[0];
  return full.exit == 2 && full.cost == full.full_cost ? 0 : 1;
}

// A multilayer perceptron 784-512-512-10 with two early exits, written as a C++ type. Shapes are checked by the
// compiler.
#include <cstdio>

#include "offramp/network/network.hpp"
#include "offramp/policy/max_probability.hpp"
#include "offramp/session/session.hpp"
#include "random_weights.hpp"

int main() {
  using namespace offramp;
  const auto w = [](std::size_t out, std::size_t in, unsigned seed) { return random_weights(out * in, in, seed); };
  Network net(input<784>,                                   //
              Dense<784, 512>(w(512, 784, 1), {}), Relu(),  //
              Exit(Dense<512, 10>(w(10, 512, 2), {})),      //
              Dense<512, 512>(w(512, 512, 3), {}), Relu(),  //
              Exit(Dense<512, 10>(w(10, 512, 4), {})),      //
              Dense<512, 10>(w(10, 512, 5), {}));
  static_assert(decltype(net)::exits == 3 && std::same_as<decltype(net)::Output, Extents<10>>);

  Session session(net, MaxProbability{{0.5f, 0.4f}}, 8);
  const auto batch = random_weights(8 * 784, 2, 6);
  for (const Prediction& p : session.predict(batch)) {
    std::printf("class %ld, confidence %.3f, exit %ld, %ld of %ld FLOPs\n", static_cast<long>(p.label),
                static_cast<double>(p.confidence), static_cast<long>(p.exit), static_cast<long>(p.cost.flops),
                static_cast<long>(p.full_cost.flops));
    if (p.exit < 2 && p.confidence < 0.4f) return 1;
  }
  return net.stage_cost(0).macs == 784 * 512 ? 0 : 1;
}

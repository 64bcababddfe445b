// Nanoseconds a step of small networks over a stream, for every instruction set, in turn with RTNeural where CMake was
// told where it is: small_networks
#include "small_networks.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include "offramp/stream/stream.hpp"

// A line for each peer that CMake has found.
#define OFFRAMP_PEER(name) extern "C" void name(small_networks::Contenders&);
#include "small_networks_peers.inc"
#undef OFFRAMP_PEER

namespace {

using namespace offramp;
namespace shape = small_networks;

template <bool Tanh>
constexpr kernel::Unary activation = Tanh ? kernel::Unary::tanh : kernel::Unary::identity;

template <int In, int Out, bool Tanh>
auto layer_of(const shape::Dense<In, Out, Tanh>&, unsigned seed) {
  return stream::Dense<In, Out, activation<Tanh>>(shape::numbers(In * Out, seed), shape::numbers(Out, seed + 1));
}
template <int In, int Out, int Kernel, int Dilation, bool Tanh>
auto layer_of(const shape::Conv1d<In, Out, Kernel, Dilation, Tanh>&, unsigned seed) {
  return stream::Conv1d<In, Out, Kernel, Dilation, activation<Tanh>>(shape::numbers(In * Out * Kernel, seed),
                                                                     shape::numbers(Out, seed + 1));
}
template <int In, int Hidden>
auto layer_of(const shape::Gru<In, Hidden>&, unsigned seed) {
  return stream::Gru<In, Hidden>(shape::numbers(3 * Hidden * In, seed), shape::numbers(3 * Hidden * Hidden, seed + 1),
                                 shape::numbers(6 * Hidden, seed + 2));
}
template <int In, int Hidden>
auto layer_of(const shape::Lstm<In, Hidden>&, unsigned seed) {
  return stream::Lstm<In, Hidden>(shape::numbers(4 * Hidden * In, seed), shape::numbers(4 * Hidden * Hidden, seed + 1),
                                  shape::numbers(8 * Hidden, seed + 2));
}

template <class S>
class Stepping {
 public:
  static constexpr int inputs = static_cast<int>(S::inputs), outputs = static_cast<int>(S::outputs);

  explicit Stepping(S net) : net_(std::move(net)), state_(net_.make_state()) {}
  const float* operator()(const float* in) noexcept {
    return net_.step(state_, std::span<const float, static_cast<std::size_t>(inputs)>(in, inputs)).data();
  }
  void block(const float* in, int samples, float* out) {
    net_.steps(state_, std::span(in, static_cast<std::size_t>(samples * inputs)),
               std::span(out, static_cast<std::size_t>(samples * outputs)));
  }

 private:
  S net_;
  typename S::State state_;
};

shape::Contenders offramp_contenders(Isa isa) {
  return shape::make_contenders([&]<class... Layers>(const shape::Network<Layers...>&) {
    unsigned seed = 1;
    const auto next = [&](const auto& layer) {
      auto made = layer_of(layer, seed);
      seed += 10;
      return made;
    };
    std::tuple layers{next(Layers{})...};  // in a list's order
    return std::apply(
        [&](auto&... l) {
          using Step = Stepping<Stream<std::decay_t<decltype(l)>...>>;
          return std::unique_ptr<shape::Contender>(
              std::make_unique<shape::SteppingContender<Step::inputs, Step::outputs, Step>>(
                  Step(Stream(isa, std::move(l)...))));
        },
        layers);
  });
}

struct Library {
  std::string name;
  bool peer = false;
  shape::Contenders networks;
  std::array<bool, shape::network_count> right{};
};
int width_of(const Library& l) {
  return std::max(9, static_cast<int>(l.name.size()));
}

std::vector<Library> libraries() {
  std::vector<Library> all;
  for (const Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512})
    if (isa <= best_isa()) all.push_back({std::string(name_of(isa)), false, offramp_contenders(isa), {}});
#define OFFRAMP_PEER(name)              \
  all.push_back({#name, true, {}, {}}); \
  name(all.back().networks);
#include "small_networks_peers.inc"
#undef OFFRAMP_PEER
  return all;
}

double seconds_of(shape::Contender& c, int steps, shape::Feed feed) {
  const auto start = std::chrono::steady_clock::now();
  c.run(steps, feed);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Nanoseconds a step of each library, medians of rounds in turn.
std::vector<double> race(std::span<Library> all, std::size_t network, shape::Feed feed) {
  constexpr std::size_t rounds = 41;
  std::vector<std::vector<double>> times(all.size());
  const int steps = std::max(1000, static_cast<int>(5e-4 / (seconds_of(*all[0].networks[network], 2000, feed) / 2000)));
  for (std::size_t round = 0; round < rounds; ++round)
    for (std::size_t turn = 0; turn < all.size(); ++turn) {
      const std::size_t l = round % 2 == 0 ? turn : all.size() - 1 - turn;
      times[l].push_back(seconds_of(*all[l].networks[network], steps, feed) / steps * 1e9);
    }
  std::vector<double> medians;
  for (auto& t : times) {
    std::nth_element(t.begin(), t.begin() + rounds / 2, t.end());
    medians.push_back(t[rounds / 2]);
  }
  return medians;
}

void race(std::vector<Library>& all, std::span<const std::string> names, shape::Feed feed) {
  std::printf("%-40s", feed == shape::Feed::block ? "nanoseconds a step, a block of samples"
                                                  : "the same, each input hanging on the last output");
  for (const Library& l : all) std::printf(" %*s", width_of(l), l.name.c_str());
  std::printf("\n");
  double logarithms = 0;
  int raced = 0;
  for (std::size_t n = 0; n < names.size(); ++n) {
    const auto times = race(all, n, feed);
    std::printf("%-40s", names[n].c_str());
    double peer = HUGE_VAL, ours = 0;
    for (std::size_t l = 0; l < all.size(); ++l) {
      if (!all[l].peer) ours = times[l];  // the last is the widest instruction set
      if (all[l].peer && all[l].right[n]) peer = std::min(peer, times[l]);
      std::printf(" %*.1f%s", width_of(all[l]) - !all[l].right[n], times[l], all[l].right[n] ? "" : "!");
    }
    if (peer < HUGE_VAL) {
      std::printf("  %.2f", peer / ours);
      logarithms += std::log(peer / ours);
      ++raced;
    }
    std::printf("\n");
  }
  if (raced > 0) std::printf("best peer over ours, geometric mean: %.2f\n", std::exp(logarithms / raced));
}

}  // namespace

int main() {
  auto all = libraries();
  std::vector<std::string> names;
  std::apply([&](const auto&... network) { (names.emplace_back(network.name), ...); }, shape::networks);

  // All have the same weights, so all must give the same outputs. A peer that does not is shown, but does not count.
  bool right = true;
  for (std::size_t n = 0; n < names.size(); ++n) {
    const float expected = all[0].networks[n]->run(100, shape::Feed::output);
    for (Library& l : all) {
      const float found = &l == all.data() ? expected : l.networks[n]->run(100, shape::Feed::output);
      l.right[n] = std::abs(found - expected) <= 1e-3f * std::max(0.1f, std::abs(expected));
      if (l.right[n]) continue;
      std::printf("! %s, %s: the 100th output is %g, expected %g\n", names[n].c_str(), l.name.c_str(),
                  static_cast<double>(found), static_cast<double>(expected));
      right = right && l.peer;
    }
  }
  for (const auto feed : {shape::Feed::block, shape::Feed::output}) race(all, names, feed);
  return right ? 0 : 1;
}

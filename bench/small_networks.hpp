// The small networks that libraries race on, their weights, and what a contender of that race is. Included by code that
// is compiled with the flags of a peer, so nothing of offramp is in it.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <memory>
#include <tuple>
#include <vector>

namespace small_networks {

/// `count` numbers between -1/4 and 1/4, for each seed its own.
inline std::vector<float> numbers(int count, unsigned seed) {
  std::vector<float> v(static_cast<std::size_t>(count));
  unsigned x = seed * 2654435761U + 1;
  for (float& y : v) {
    x = x * 1664525 + 1013904223;
    y = (static_cast<float>(x >> 8) / 16777216.0f - 0.5f) * 0.5f;
  }
  return v;
}

// Layers, sizes only. Weights are as ONNX has them: dense [out][in], convolutions [out][in][kernel], recurrent ones by
// gate, z r h and i o f c.
template <int In, int Out, bool Tanh = false>
struct Dense {
  static constexpr int inputs = In, outputs = Out;
  static constexpr bool tanh = Tanh;
};
template <int In, int Out, int Kernel, int Dilation = 1, bool Tanh = false>
struct Conv1d {
  static constexpr int inputs = In, outputs = Out, kernel = Kernel, dilation = Dilation;
  static constexpr bool tanh = Tanh;
};
template <int In, int Hidden>
struct Gru {
  static constexpr int inputs = In, outputs = Hidden;
};
template <int In, int Hidden>
struct Lstm {
  static constexpr int inputs = In, outputs = Hidden;
};
template <class... Layers>
struct Network {
  const char* name;
};

/// Networks as RTNeural's repository measures and ships them, then the single layers of its layer benchmark.
inline constexpr std::tuple networks{
    Network<Gru<1, 16>, Dense<16, 1>>{"GRU 16, dense 1"},
    Network<Gru<1, 32>, Dense<32, 1>>{"GRU 32, dense 1"},
    Network<Gru<32, 64>, Dense<64, 1>>{"GRU 32 to 64, dense 1"},
    Network<Lstm<1, 32>, Dense<32, 1>>{"LSTM 32, dense 1"},
    Network<Dense<64, 64>, Dense<64, 64>, Dense<64, 1>>{"dense 64, 64, 64, 1"},
    Network<Dense<1, 8, true>, Conv1d<8, 4, 3, 2, true>, Gru<4, 8>, Dense<8, 1>>{"dense 8, conv 4, GRU 8, dense 1"},
    Network<Conv1d<16, 16, 3>, Conv1d<16, 16, 3>, Conv1d<16, 16, 3>>{"three conv1d of 16 channels, kernel 3"},
    Network<Dense<4, 4>>{"dense 4 to 4"},
    Network<Dense<8, 8>>{"dense 8 to 8"},
    Network<Dense<16, 16>>{"dense 16 to 16"},
    Network<Dense<24, 1>>{"dense 24 to 1"},
    Network<Conv1d<4, 4, 3>>{"conv1d 4, kernel 3"},
    Network<Conv1d<8, 8, 7, 2>>{"conv1d 8, kernel 7, dilation 2"},
    Network<Conv1d<16, 16, 15, 4>>{"conv1d 16, kernel 15, dilation 4"},
    Network<Gru<4, 4>>{"GRU 4 to 4"},
    Network<Gru<8, 8>>{"GRU 8 to 8"},
    Network<Gru<16, 16>>{"GRU 16 to 16"},
    Network<Gru<1, 24>>{"GRU 1 to 24"},
    Network<Lstm<4, 4>>{"LSTM 4 to 4"},
    Network<Lstm<8, 8>>{"LSTM 8 to 8"},
    Network<Lstm<16, 16>>{"LSTM 16 to 16"},
    Network<Lstm<1, 24>>{"LSTM 1 to 24"},
};
inline constexpr std::size_t network_count = std::tuple_size_v<decltype(networks)>;

/// What the next step's input is: the next sample of a block, or one that hangs on the last output, so that no step
/// begins before the one in front of it has ended.
enum class Feed { block, output };

/// One network of one library, with a stream's state.
class Contender {
 public:
  Contender() = default;
  Contender(const Contender&) = delete;
  Contender& operator=(const Contender&) = delete;
  virtual ~Contender() = default;

  /// So many more steps, rounded up to blocks; the last step's first output.
  virtual float run(int steps, Feed feed) = 0;
};
using Contenders = std::array<std::unique_ptr<Contender>, network_count>;

/// A contender that steps by `step(const float* in) -> const float*`, and through blocks of samples, where it can, by
/// `step.block(const float* in, int samples, float* out)`.
template <int Inputs, int Outputs, class Step>
class SteppingContender final : public Contender {
 public:
  explicit SteppingContender(Step step) : step_(std::move(step)) {
    const auto samples = numbers(row * block, 1000);
    std::copy(samples.begin(), samples.end(), in_.begin());
  }
  float run(int steps, Feed feed) override {
    if (feed == Feed::block) {
      for (int i = 0; i < steps; i += block) {
        if constexpr (requires { step_.block(in_.data(), block, out_.data()); }) {
          step_.block(in_.data(), block, out_.data());
        } else {
          for (int j = 0; j < block; ++j) {
            const float* y = step_(in_.data() + j * row);
            for (int o = 0; o < Outputs; ++o) out_[static_cast<std::size_t>(j * Outputs + o)] = y[o];
          }
        }
      }
      return out_[static_cast<std::size_t>((block - 1) * Outputs)];
    }
    const float first = in_[0];
    float y = 0;
    for (int i = 0; i < steps; ++i) {
      y = *step_(in_.data());
      in_[0] = first + y * 0.25f;
    }
    in_[0] = first;
    return y;
  }

 private:
  static constexpr int block = 64, row = (Inputs + 15) / 16 * 16;  // some peers read aligned vectors
  Step step_;
  alignas(64) std::array<float, static_cast<std::size_t>(row* block)> in_{};
  alignas(64) std::array<float, static_cast<std::size_t>(Outputs* block)> out_{};
};

/// All networks of one library: `make(Network<Layers...>)` returns a contender.
template <class Make>
Contenders make_contenders(const Make& make) {
  return std::apply([&](const auto&... network) { return Contenders{make(network)...}; }, networks);
}

}  // namespace small_networks

/// @file repeated_run.hpp
/// A prepared network again and again, and how long each of its layers takes.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "offramp/graph/model.hpp"

namespace offramp {

/// Runs a network again and again on the same random samples, uniform in [0, 1).
class RepeatedRun {
 public:
  /// Raises an Error where the model has no plan.
  RepeatedRun(const Model& model, Index batch)
      : model_(model),
        state_(model.make_layer_state(batch)),
        samples_(static_cast<std::size_t>(state_.capacity() * model.sample_size())),
        ms_(model.layers().size()) {
    std::uint32_t seed = 1;
    for (float& x : samples_)
      x = static_cast<float>((seed = seed * 1103515245 + 12345) >> 8) / static_cast<float>(1 << 24);
  }

  /// The samples of a run.
  std::span<const float> samples() const noexcept { return samples_; }

  /// The network's own answer, without early exits and their heads.
  void run() {
    watched([](std::size_t, const auto& layer) { return layer(); }, false);
  }

  /// Milliseconds of each layer, those of heads included, in one run.
  std::span<const double> layer_ms() {
    using clock = std::chrono::steady_clock;
    ms_.assign(ms_.size(), 0);
    watched(
        [&](std::size_t i, const auto& layer) {
          const auto start = clock::now();
          const bool good = layer();
          ms_[i] += std::chrono::duration<double, std::milli>(clock::now() - start).count();
          return good;
        },
        true);
    return ms_;
  }

 private:
  template <class Watch>
  void watched(Watch watch, bool with_heads) {
    if (!model_.inputs().empty() && model_.inputs()[0].type == DType::f32)
      model_.load(state_, samples_.data(), state_.capacity());
    OFFRAMP_REQUIRE(model_.run_layers(state_, watch, with_heads), "an index in the data is out of range");
  }

  Model model_;
  Model::State state_;
  std::vector<float> samples_;
  std::vector<double> ms_;
};

}  // namespace offramp

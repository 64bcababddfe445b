/// @file contest.hpp
/// Several networks on the same samples, in turn: accuracy, agreement, FLOPs, latency, energy.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "data.hpp"
#include "energy.hpp"
#include "evaluation.hpp"
#include "offramp/offramp.hpp"
#include "output.hpp"

namespace tool {

/// One network that takes part, with what was measured of it.
struct Contender {
  Contender(std::string called, offramp::Model what, offramp::AnyPolicy how)
      : name(std::move(called)), model(std::move(what)), policy(std::move(how)) {}

  std::string name;
  offramp::Model model;
  offramp::AnyPolicy policy;
  Index size_bytes = 0;

  Index right = 0, agreeing = 0, samples = 0;
  double flops = 0;          ///< mean nominal of a sample
  double integer_share = 0;  ///< of the nominal FLOPs of the whole network, those that are done with bytes
  Latency latency;
  std::vector<Index> answers;

  double accuracy() const { return static_cast<double>(right) / static_cast<double>(std::max<Index>(1, samples)); }
  double agreement() const { return static_cast<double>(agreeing) / static_cast<double>(std::max<Index>(1, samples)); }
};

inline double integer_share_of(const offramp::Model& m) {
  double all = 0, integer = 0;
  for (const auto& l : m.layers()) {
    all += static_cast<double>(l.cost.flops);
    integer += static_cast<double>(l.cost.integer);
  }
  return all > 0 ? integer / all : 0;
}

inline Contender contender(std::string name, const offramp::Model& model, offramp::AnyPolicy policy) {
  Contender c(std::move(name), model, std::move(policy));
  c.size_bytes = static_cast<Index>(offramp::save_onnx(model).size());
  c.integer_share = integer_share_of(model);
  return c;
}

/// Every sample by every contender, one sample a call, in turns of `turn_samples`, in an order that changes from turn
/// to turn. Agreement is with `reference`, one answer a sample; empty: with the first contender.
inline void contest(std::vector<Contender>& all, std::span<const float> samples, std::span<const Index> labels,
                    std::span<const Index> reference = {}) {
  using clock = std::chrono::steady_clock;
  OFFRAMP_REQUIRE(!all.empty(), "there is nothing to measure");
  const auto size = static_cast<std::size_t>(all[0].model.sample_size());
  const std::size_t count = samples.size() / size;
  std::vector<offramp::Session<offramp::Model>> sessions;
  for (const Contender& c : all) {
    OFFRAMP_REQUIRE(static_cast<std::size_t>(c.model.sample_size()) == size, "the networks take different samples");
    sessions.emplace_back(c.model, c.policy, 1);
  }
  std::vector<std::vector<double>> ms(all.size());
  for (auto& s : sessions) {
    for (std::size_t i = 0; i < std::min<std::size_t>(20, count); ++i) s.predict(samples.subspan(i * size, size));
    s.reset_counter();
  }
  Arrival arrival;
  Progress progress("measuring", static_cast<Index>(count));
  constexpr auto turn = static_cast<std::size_t>(turn_samples);
  for (std::size_t begin = 0; begin < count; begin += turn) {
    const std::size_t end = std::min(count, begin + turn);
    for (std::size_t k = 0; k < all.size(); ++k) {
      const std::size_t c = (begin / turn + k) % all.size();
      for (std::size_t i = begin; i < end; ++i) {
        const auto sample = arrival.of(samples.subspan(i * size, size));
        const auto start = clock::now();
        const offramp::Prediction p = sessions[c].predict(sample)[0];
        ms[c].push_back(std::chrono::duration<double, std::milli>(clock::now() - start).count());
        all[c].answers.push_back(p.label);
        all[c].flops += static_cast<double>(p.cost.flops);
      }
    }
    progress.at(static_cast<Index>(end));
  }
  for (std::size_t c = 0; c < all.size(); ++c) {
    Contender& x = all[c];
    x.samples = static_cast<Index>(count);
    x.flops /= static_cast<double>(std::max<std::size_t>(1, count));
    x.latency = latency_of(ms[c]);
    for (std::size_t i = 0; i < count; ++i) {
      const Index wanted = reference.empty() ? all[0].answers[i] : reference[i];
      x.agreeing += x.answers[i] == wanted;
      if (!labels.empty()) x.right += x.answers[i] == labels[i];
    }
  }
}

inline json contender_json(const Contender& c) {
  return {{"accuracy", c.accuracy()},
          {"agreement", c.agreement()},
          {"flops", c.flops},
          {"integer_share", c.integer_share},
          {"latency", {{"mean_ms", c.latency.mean}, {"p50_ms", c.latency.p50}, {"p99_ms", c.latency.p99}}},
          {"size_bytes", c.size_bytes}};
}

inline void print_contenders(const std::vector<Contender>& all) {
  std::printf("%-44s %9s %10s %10s %10s %10s\n", "network", "accuracy", "agreement", "FLOPs", "mean ms", "bytes");
  for (const Contender& c : all)
    std::printf("%-44s %9s %10s %10s %10s %10s\n", c.name.substr(0, 44).c_str(), percent(c.accuracy()).c_str(),
                percent(c.agreement()).c_str(), engineering(c.flops).c_str(), fixed(c.latency.mean, 4).c_str(),
                engineering(static_cast<double>(c.size_bytes)).c_str());
}

}  // namespace tool

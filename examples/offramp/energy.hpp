/// @file energy.hpp
/// Energy for an inference, where the machine has a counter.
#pragma once

#include <chrono>
#include <fstream>
#include <optional>

#include "output.hpp"

namespace tool {

/// The energy counter of the processor package (RAPL), where the machine has one that may be read.
class EnergyCounter {
 public:
  static constexpr const char* none = "this machine shows no energy counter";

  /// Joules since some time ago, or nothing.
  static std::optional<double> joules() {
    std::ifstream f("/sys/class/powercap/intel-rapl:0/energy_uj");
    double microjoules = 0;
    if (!(f >> microjoules)) return {};
    return microjoules / 1e6;
  }
};

/// Joules of one call of `run`, over half a second of calls; nothing where there is no counter.
template <class Run>
std::optional<double> joules_of(Run&& run) {
  const auto before = EnergyCounter::joules();
  if (!before) return {};
  using clock = std::chrono::steady_clock;
  double calls = 0;
  for (const auto end = clock::now() + std::chrono::milliseconds(500); clock::now() < end; ++calls) run();
  const auto after = EnergyCounter::joules();
  if (!after || *after < *before || calls == 0) return {};
  return (*after - *before) / calls;
}

/// Of early exits and of the full network.
struct Energy {
  std::optional<double> early, full;

  json to_json() const {
    if (!early || !full) return {{"joules", nullptr}, {"reason", EnergyCounter::none}};
    return {{"joules", *early}, {"full", *full}};
  }
};

}  // namespace tool

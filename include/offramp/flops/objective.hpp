/// @file objective.hpp
/// What a smaller or earlier answering network is to save.
#pragma once

#include <cstdint>
#include <string_view>

namespace offramp {

enum class Objective : std::uint8_t {
  flops,     ///< nominal FLOPs
  modelled,  ///< time as it follows from executed FLOPs and bytes moved: not measured, so the same each time
  latency,   ///< milliseconds of one sample on this machine
};

constexpr std::string_view name_of(Objective objective) noexcept {
  switch (objective) {
    case Objective::flops:
      return "flops";
    case Objective::modelled:
      return "modelled";
    case Objective::latency:
      return "latency";
  }
  return "flops";
}

}  // namespace offramp

/// @file objective.hpp
/// What a smaller or earlier answering network is to save.
#pragma once

#include <cstdint>

namespace offramp {

enum class Objective : std::uint8_t {
  flops,     ///< nominal FLOPs
  modelled,  ///< time as it follows from executed FLOPs and bytes moved: not measured, so the same each time
  latency,   ///< milliseconds of one sample on this machine
};

}  // namespace offramp

/// @file objective.hpp
/// What a smaller or earlier answering network is to save.
#pragma once

#include <cstdint>

namespace offramp {

enum class Objective : std::uint8_t {
  flops,     ///< nominal FLOPs
  executed,  ///< FLOPs that the kernels do: less than nominal where Winograd runs; nearer to time, and no measurement
  latency,   ///< milliseconds of one sample on this machine
};

}  // namespace offramp

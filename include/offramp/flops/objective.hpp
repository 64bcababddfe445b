/// @file objective.hpp
/// What a smaller or earlier answering network is to save.
#pragma once

#include <cstdint>

namespace offramp {

enum class Objective : std::uint8_t {
  flops,    ///< nominal FLOPs
  latency,  ///< milliseconds of one sample on this machine
};

}  // namespace offramp

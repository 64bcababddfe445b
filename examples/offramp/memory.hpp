/// @file memory.hpp
/// How much memory this process takes.
#pragma once

#include <sys/resource.h>

#include "offramp/core/shape.hpp"

namespace tool {

/// The most memory that this process has had, in bytes.
inline offramp::Index peak_memory() {
  rusage u{};
  getrusage(RUSAGE_SELF, &u);
  return static_cast<offramp::Index>(u.ru_maxrss) * 1024;
}

/// What it had when it began.
inline const offramp::Index memory_at_start = peak_memory();

}  // namespace tool

/// @file cost.hpp
/// What a piece of work costs. docs/flops.md states the convention for every operator.
#pragma once

#include <cstdint>

#include "offramp/core/shape.hpp"

namespace offramp {

/// Operations of one piece of work. A MAC is one multiplication and one addition, that is two FLOPs.
struct Cost {
  std::int64_t macs = 0;      ///< multiply-accumulates of convolutions, matrix products and recurrent steps
  std::int64_t flops = 0;     ///< nominal: the convention of papers; 2 per MAC, plus the other operators' own
  std::int64_t executed = 0;  ///< what the kernels did: padding to whole vectors included, folded work excluded
  std::int64_t integer = 0;   ///< of `flops`, those that are done with integers

  constexpr Cost& operator+=(const Cost& o) noexcept {
    macs += o.macs;
    flops += o.flops;
    executed += o.executed;
    integer += o.integer;
    return *this;
  }
  friend constexpr Cost operator+(Cost a, const Cost& b) noexcept { return a += b; }
  friend constexpr Cost operator-(const Cost& a, const Cost& b) noexcept {
    return {a.macs - b.macs, a.flops - b.flops, a.executed - b.executed, a.integer - b.integer};
  }
  friend constexpr Cost operator*(const Cost& a, Index n) noexcept {
    return {a.macs * n, a.flops * n, a.executed * n, a.integer * n};
  }
  constexpr bool operator==(const Cost&) const noexcept = default;

  /// `count` FLOPs, done as they are counted.
  static constexpr Cost plain(Index count) noexcept { return {0, count, count}; }
};

}  // namespace offramp

/// @file ramped.hpp
/// What a product of bytes does with an input in float that it rounds by ramps (`kernel::RampedRounding`).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "offramp/kernel/kernels.hpp"
#include "offramp/layer/node.hpp"

namespace offramp {

/// The input of such a product. Its bytes go through the product like any others; the few numbers that lie between two
/// bytes then add what is missing, each its share of one row of weights. Attributes of the node: `x_factor` (0 or
/// absent: the input is bytes), `x_zero`, `x_ramp`.
class RampedInput {
 public:
  explicit RampedInput(const Node& node)
      : by_{node.real("x_factor", 0), static_cast<std::int32_t>(node.integer("x_zero", 0)), node.real("x_ramp", 0.5f)} {
  }

  explicit operator bool() const noexcept { return by_.factor > 0; }

  /// FLOPs that a number takes.
  static constexpr Index executed = 8;

  /// 64-bit words that say of a row which of its numbers lie between bytes.
  static constexpr Index words(Index length) noexcept { return (length + 63) / 64; }

  void quantize(const float* row, Index length, std::uint8_t* bytes, std::uint64_t* between,
                const kernel::IntegerKernels& kernels) const noexcept {
    kernels.quantize_ramped(row, bytes, length, by_, between);
  }
  /// Calls f(index, rest) for each number of a row that lies `rest` steps above its byte.
  template <class F>
  void each_between(const float* row, Index length, const std::uint64_t* between, F&& f) const noexcept {
    for (Index word = 0; word < words(length); ++word) {
      for (std::uint64_t bits = between[word]; bits != 0; bits &= bits - 1) {
        const Index i = 64 * word + std::countr_zero(bits);
        f(i, by_.rest(row[i]));
      }
    }
  }

 private:
  kernel::RampedRounding by_;
};

}  // namespace offramp

/// @file cost.hpp
/// What the choice between algorithms reckons with.
#pragma once

#include <algorithm>

#include "offramp/kernel/isa.hpp"

namespace offramp::kernel {

/// Share of the peak that the matrix kernels reach inside of networks, and Winograd's, whose tiles lie packed.
inline constexpr double product_share = 0.75, winograd_share = 0.85;

/// Bytes of weights that come in a cycle for which one core waits: from L3, and from where the weights of a network lie
/// that fill L3, too. Measured, on a Zen 5 and on a Xeon and a Zen 4 alike.
struct WeightRate {
  double near, far;
};
inline WeightRate weight_rate() noexcept {
  return detail::is_zen5() ? WeightRate{10, 8} : WeightRate{8, 5};
}

/// What modelled prices (`calibrate/prices.hpp`) reckon with, in FLOPs that a core could do meanwhile: while a byte
/// moves between caches and registers, and where it is rounded on its way, besides; until a layer is in its stride;
/// while it does a FLOP of Winograd's products, which are many small ones, and one of his transformations, which add
/// more than they multiply and load more than they add. Measured on a Zen 5, at 90 stages and heads of thirteen
/// networks.
inline constexpr double flops_per_byte = 2, flops_per_rounded_byte = 4, flops_per_layer = 10000, winograd_pace = 1.2,
                        transformation_pace = 2;

/// The same while a byte of weights comes, of which a step before has asked for the first. Measured at heads that pool
/// a map and multiply it by 15 to 50 KB on a Zen 5, by 26 KB on a Xeon.
inline double flops_per_weight_byte() noexcept {
  return detail::is_zen5() ? 1 : 6;
}

/// How many times as fast products are in bytes; what comes in and goes out as floats must be rounded besides.
inline double byte_speedup(Isa isa) noexcept {
  return std::max(1.0, 0.775 * byte_multiply_adds(isa));
}

/// Cycles in which so many bytes of weights come to one core.
inline double cycles_to_bring(double bytes) noexcept {
  return bytes / (bytes < 8e6 ? weight_rate().near : weight_rate().far);
}

/// The same for weights that this call has already read.
inline double cycles_to_repeat(double bytes) noexcept {
  return bytes / (bytes < 1e6 ? 40 : weight_rate().near);
}

/// Cycles of work that takes `cycles` with all weights at hand. Where these are few enough for L2, the kernels ask for
/// them early and they come beside half of it, few of them beside all (measured: 36 products of 64 x 64 with 4 to 24
/// rows, of 96 x 96 with 16; of 32 x 32 with 16, of 32 x 48 with 4).
inline double cycles_with_weights(double cycles, double bytes) noexcept {
  const double beside = bytes < 300e3 ? cycles : bytes < 1.5e6 ? cycles / 2 : 0;
  const double wait = cycles_to_bring(bytes) - beside;
  return cycles + (wait > 0 ? wait : 0);
}

}  // namespace offramp::kernel

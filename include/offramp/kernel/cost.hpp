/// @file cost.hpp
/// What the choice between algorithms reckons with.
#pragma once

namespace offramp::kernel {

/// Share of the peak that the matrix kernels reach inside of networks.
inline constexpr double product_share = 0.75;

/// Cycles that one core waits for so many bytes of weights: nothing where they stay in L2 between two calls, eight
/// bytes a cycle from L3, five where the weights of the network fill that, too.
constexpr double cycles_to_bring(double bytes) noexcept {
  return bytes < 300e3 ? 0.0 : bytes < 8e6 ? bytes / 8 : bytes / 5;
}

/// The same for weights that this call has already read.
constexpr double cycles_to_repeat(double bytes) noexcept {
  return bytes < 1e6 ? bytes / 40 : bytes / 8;
}

/// Cycles of work that takes `cycles` with all weights at hand: where these are few enough for L2, the kernels ask for
/// them early and they come beside half of it (measured: 36 products of 64 x 64 with 4 to 24 rows).
constexpr double cycles_with_weights(double cycles, double bytes) noexcept {
  const double wait = cycles_to_bring(bytes) - (bytes < 1e6 ? cycles / 2 : 0);
  return cycles + (wait > 0 ? wait : 0);
}

}  // namespace offramp::kernel

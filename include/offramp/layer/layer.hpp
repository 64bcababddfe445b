/// @file layer.hpp
/// The concept of a layer of a network written as a C++ type, and what it may leave out.
#pragma once

#include <concepts>
#include <cstddef>
#include <type_traits>

#include "offramp/core/shape.hpp"
#include "offramp/flops/cost.hpp"
#include "offramp/kernel/kernels.hpp"

namespace offramp {

/// Sizes that the compiler does not know.
struct UnknownExtents {
  static constexpr bool is_static = false;
  static constexpr int rank = -1;
  template <int Axis>
  static constexpr Index size = dynamic;
};

/// A layer: a plain type that, told its input's shape (channels, height, width; or one axis), answers its output's, and
/// then computes. Elements stand channels last: [height][width][channels].
///
/// Optional members:
///   template <class In> using Output = ...;   the output's Extents, checked by the compiler; else they are unknown
///   Cost cost() const noexcept;               of one sample, after bind; else zero
///   Index scratch(Index batch) const noexcept;   floats of scratch for a batch; else none
template <class L>
concept Layer = std::move_constructible<L> && requires(L& l, const L& c, const Shape& in, const kernel::Kernels& k,
                                                       const float* x, float* y, Index batch, float* scratch) {
  { l.bind(in, k) } -> std::convertible_to<Shape>;  // prepares weights; raises an Error where they do not fit
  { c.forward(x, y, batch, scratch, k) }
  noexcept;
};

namespace detail {

template <class L, class In>
struct OutputOf {
  using type = UnknownExtents;
};
template <class L, class In>
requires requires {
  typename L::template Output<UnknownExtents>;  // it has one; where In does not fit, that is an error
}
struct OutputOf<L, In> {
  using type = typename L::template Output<In>;
};

}  // namespace detail

/// The Extents that L makes of In, or UnknownExtents. Shapes that cannot fit do not compile.
template <class L, class In>
using LayerOutput = typename detail::OutputOf<L, In>::type;

template <Layer L>
Cost layer_cost(const L& l) noexcept {
  if constexpr (requires {
                  { l.cost() } -> std::convertible_to<Cost>;
                }) {
    return l.cost();
  } else {
    return {};
  }
}

template <Layer L>
Index layer_scratch(const L& l, Index batch) noexcept {
  if constexpr (requires {
                  { l.scratch(batch) } -> std::convertible_to<Index>;
                }) {
    return (l.scratch(batch) + 15) / 16 * 16;
  } else {
    return 0;
  }
}

}  // namespace offramp

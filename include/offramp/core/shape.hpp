/// @file shape.hpp
/// Shapes: `Shape` for sizes known at run time, `Extents` for sizes known to the compiler, one family.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <span>
#include <string>

#include "offramp/core/error.hpp"

namespace offramp {

/// Sizes, strides and positions, in elements unless a name says bytes.
using Index = std::int64_t;

/// A size that is known only at run time.
inline constexpr Index dynamic = -1;

/// The product of two non-negative sizes; raises an Error on overflow.
constexpr Index checked_product(Index a, Index b) {
  if (a != 0 && b > std::numeric_limits<Index>::max() / a) raise("sizes overflow");
  return a * b;
}

/// The sizes of a tensor's axes, outermost first, held inline: copying allocates nothing.
class Shape {
 public:
  static constexpr int max_rank = 8;

  constexpr Shape() noexcept = default;
  constexpr Shape(std::initializer_list<Index> sizes) : Shape(std::span<const Index>(sizes.begin(), sizes.size())) {}
  constexpr explicit Shape(std::span<const Index> sizes) {
    for (const Index n : sizes) push_back(n);
  }

  constexpr int rank() const noexcept { return rank_; }
  constexpr Index operator[](int axis) const noexcept { return sizes_[static_cast<std::size_t>(axis)]; }
  constexpr Index& operator[](int axis) noexcept { return sizes_[static_cast<std::size_t>(axis)]; }
  constexpr const Index* begin() const noexcept { return sizes_.data(); }
  constexpr const Index* end() const noexcept { return sizes_.data() + rank_; }
  constexpr std::span<const Index> sizes() const noexcept { return {begin(), static_cast<std::size_t>(rank_)}; }

  constexpr void push_back(Index n) {
    if (rank_ == max_rank) raise("a shape has more than 8 axes");
    sizes_[static_cast<std::size_t>(rank_++)] = n;
  }

  /// The product of the sizes of axes [from, to); 1 where the range is empty.
  constexpr Index count(int from, int to) const noexcept {
    Index n = 1;
    for (int i = from; i < to; ++i) n *= (*this)[i];
    return n;
  }
  constexpr Index count() const noexcept { return count(0, rank_); }

  /// Raises an Error where a size is negative or the number of elements overflows; returns that number.
  constexpr Index checked_count() const {
    Index n = 1;
    for (const Index d : sizes()) {
      if (d < 0) raise("negative size in shape " + text());
      n = checked_product(n, d == 0 ? 1 : d);
    }
    return count();
  }

  constexpr bool operator==(const Shape& o) const noexcept {
    return rank_ == o.rank_ && std::equal(begin(), end(), o.begin());
  }

  /// As people write it: [1,3,32,32].
  std::string text() const {
    std::string s(1, '[');
    for (int i = 0; i < rank_; ++i) {
      if (i > 0) s += ',';
      s += std::to_string((*this)[i]);
    }
    s += ']';
    return s;
  }

 private:
  std::array<Index, max_rank> sizes_{};
  int rank_ = 0;
};

/// Sizes known to the compiler (or `dynamic` each), without the batch axis: `Extents<3, 32, 32>`.
template <Index... Sizes>
struct Extents {
  static constexpr int rank = static_cast<int>(sizeof...(Sizes));
  static constexpr std::array<Index, sizeof...(Sizes)> sizes{Sizes...};
  static constexpr bool is_static = ((Sizes != dynamic) && ...);

  template <int Axis>
  static constexpr Index size = sizes[static_cast<std::size_t>(Axis)];

  static constexpr Index count() noexcept requires is_static { return (Index{1} * ... * Sizes); }
  static Shape shape() requires is_static { return Shape{Sizes...}; }
};

/// An axis that counts from the end where it is negative, counted from the front.
constexpr Index from_front(Index axis, int rank) noexcept {
  return axis < 0 ? axis + rank : axis;
}

/// The axis that ONNX means by `axis`, which may be negative; raises an Error where it is out of range.
inline int normalize_axis(Index axis, int rank) {
  if (axis < -rank || axis >= rank) {
    raise("axis " + std::to_string(axis) + " is outside a tensor of rank " + std::to_string(rank));
  }
  return static_cast<int>(from_front(axis, rank));
}

}  // namespace offramp

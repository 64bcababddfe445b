/// @file element.hpp
/// Reading and writing single elements of any type, and walking broadcast tensors: what the generic operators use.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>

#include "offramp/core/tensor.hpp"

namespace offramp {

/// Element i as a double; exact but for large 64-bit integers.
inline double real_at(const TensorView& x, Index i) noexcept {
  switch (x.type) {
    case DType::f32:
      return static_cast<double>(x.as<float>()[i]);
    case DType::f64:
      return x.as<double>()[i];
    case DType::f16:
      return static_cast<double>(f16_to_float(x.as<std::uint16_t>()[i]));
    case DType::bf16:
      return static_cast<double>(bf16_to_float(x.as<std::uint16_t>()[i]));
    case DType::i8:
      return x.as<std::int8_t>()[i];
    case DType::u8:
      return x.as<std::uint8_t>()[i];
    case DType::i16:
      return x.as<std::int16_t>()[i];
    case DType::u16:
      return x.as<std::uint16_t>()[i];
    case DType::i32:
      return x.as<std::int32_t>()[i];
    case DType::u32:
      return x.as<std::uint32_t>()[i];
    case DType::i64:
      return static_cast<double>(x.as<std::int64_t>()[i]);
    case DType::u64:
      return static_cast<double>(x.as<std::uint64_t>()[i]);
    case DType::boolean:
      return x.as<std::uint8_t>()[i] != 0;
    case DType::none:
      return 0;
  }
  return 0;
}

/// A double as an integer, as C++ would convert it; what does not fit saturates, and a NaN is 0.
inline std::int64_t integer_of(double v) noexcept {
  if (!(v > -9223372036854775808.0)) return v == v ? INT64_MIN : 0;
  return v < 9223372036854775808.0 ? static_cast<std::int64_t>(v) : INT64_MAX;
}

/// Element i as a 64-bit integer; an unsigned one keeps its bits.
inline std::int64_t integer_at(const TensorView& x, Index i) noexcept {
  switch (x.type) {
    case DType::i8:
      return x.as<std::int8_t>()[i];
    case DType::u8:
      return x.as<std::uint8_t>()[i];
    case DType::i16:
      return x.as<std::int16_t>()[i];
    case DType::u16:
      return x.as<std::uint16_t>()[i];
    case DType::i32:
      return x.as<std::int32_t>()[i];
    case DType::u32:
      return x.as<std::uint32_t>()[i];
    case DType::i64:
      return x.as<std::int64_t>()[i];
    case DType::u64:
      return static_cast<std::int64_t>(x.as<std::uint64_t>()[i]);
    case DType::boolean:
      return x.as<std::uint8_t>()[i] != 0;
    default:
      return integer_of(real_at(x, i));
  }
}

inline void put_integer(const TensorView& x, Index i, std::int64_t v) noexcept {
  switch (x.type) {
    case DType::i8:
      x.as<std::int8_t>()[i] = static_cast<std::int8_t>(v);
      break;
    case DType::u8:
      x.as<std::uint8_t>()[i] = static_cast<std::uint8_t>(v);
      break;
    case DType::i16:
      x.as<std::int16_t>()[i] = static_cast<std::int16_t>(v);
      break;
    case DType::u16:
      x.as<std::uint16_t>()[i] = static_cast<std::uint16_t>(v);
      break;
    case DType::i32:
      x.as<std::int32_t>()[i] = static_cast<std::int32_t>(v);
      break;
    case DType::u32:
      x.as<std::uint32_t>()[i] = static_cast<std::uint32_t>(v);
      break;
    case DType::i64:
      x.as<std::int64_t>()[i] = v;
      break;
    case DType::u64:
      x.as<std::uint64_t>()[i] = static_cast<std::uint64_t>(v);
      break;
    case DType::boolean:
      x.as<std::uint8_t>()[i] = v != 0;
      break;
    case DType::f32:
      x.as<float>()[i] = static_cast<float>(v);
      break;
    case DType::f64:
      x.as<double>()[i] = static_cast<double>(v);
      break;
    case DType::f16:
      x.as<std::uint16_t>()[i] = float_to_f16(static_cast<float>(v));
      break;
    case DType::bf16:
      x.as<std::uint16_t>()[i] = float_to_bf16(static_cast<float>(v));
      break;
    case DType::none:
      break;
  }
}

inline void put_real(const TensorView& x, Index i, double v) noexcept {
  switch (x.type) {
    case DType::f32:
      x.as<float>()[i] = static_cast<float>(v);
      break;
    case DType::f64:
      x.as<double>()[i] = v;
      break;
    case DType::f16:
      x.as<std::uint16_t>()[i] = float_to_f16(static_cast<float>(v));
      break;
    case DType::bf16:
      x.as<std::uint16_t>()[i] = float_to_bf16(static_cast<float>(v));
      break;
    case DType::boolean:
      x.as<std::uint8_t>()[i] = v != 0;
      break;
    default:
      put_integer(x, i, integer_of(v));
  }
}

/// Copies n elements of `size` bytes.
inline void copy_elements(void* to, Index to_at, const void* from, Index from_at, Index n, std::size_t size) noexcept {
  if (n <= 0) return;
  std::memcpy(static_cast<std::byte*>(to) + static_cast<std::size_t>(to_at) * size,
              static_cast<const std::byte*>(from) + static_cast<std::size_t>(from_at) * size,
              static_cast<std::size_t>(n) * size);
}

/// Row-major strides of `shape`, in elements.
inline Shape strides_of(const Shape& shape) noexcept {
  Shape s = shape;
  Index stride = 1;
  for (int i = shape.rank() - 1; i >= 0; --i) {
    s[i] = stride;
    stride *= shape[i];
  }
  return s;
}

/// The shape that two shapes broadcast to (numpy's rule, ONNX opset 7 and later); raises an Error where there is none.
inline Shape broadcast_shape(const Shape& a, const Shape& b) {
  const int rank = std::max(a.rank(), b.rank());
  Shape s;
  for (int i = 0; i < rank; ++i) {
    const int ia = i - (rank - a.rank()), ib = i - (rank - b.rank());
    const Index x = ia < 0 ? 1 : a[ia], y = ib < 0 ? 1 : b[ib];
    OFFRAMP_REQUIRE(x == y || x == 1 || y == 1, "shapes " + a.text() + " and " + b.text() + " do not broadcast");
    s.push_back(x == 1 ? y : x);
  }
  return s;
}

/// Walks the elements of a shape with up to three operands of which each has its own strides (0 where it repeats).
/// Trailing axes that all operands walk alike are joined into one inner run.
struct BroadcastWalk {
  static constexpr int max_operands = 3;
  Shape outer;                              ///< axes outside the inner run
  Index inner = 1;                          ///< length of the inner run
  std::array<Shape, max_operands> strides;  ///< of each operand along `outer`
  std::array<Index, max_operands> step{};   ///< of each operand along the inner run: 0 or 1

  BroadcastWalk(const Shape& out, std::initializer_list<const Shape*> operands) noexcept {
    const int rank = out.rank();
    std::array<Shape, max_operands> full;
    std::size_t n = 0;
    for (const Shape* s : operands) {
      const Shape own = strides_of(*s);
      for (int i = 0; i < rank; ++i) {
        const int j = i - (rank - s->rank());
        full[n].push_back(j < 0 || (*s)[j] == 1 ? 0 : own[j]);
      }
      ++n;
    }
    int axis = rank;
    bool first = true;
    while (axis > 0) {
      const int i = axis - 1;
      if (out[i] != 1) {
        bool fits = true;
        for (std::size_t k = 0; k < n; ++k) {
          if (first) {
            fits = fits && (full[k][i] == 0 || full[k][i] == 1);
          } else {
            fits = fits && full[k][i] == step[k] * inner;
          }
        }
        if (!fits) break;
        if (first) {
          for (std::size_t k = 0; k < n; ++k) step[k] = full[k][i];
          first = false;
        }
        inner *= out[i];
      }
      --axis;
    }
    for (int i = 0; i < axis; ++i) {
      outer.push_back(out[i]);
      for (std::size_t k = 0; k < n; ++k) strides[k].push_back(full[k][i]);
    }
    for (std::size_t k = n; k < max_operands; ++k) {
      for (int i = 0; i < axis; ++i) strides[k].push_back(0);
    }
  }

  /// Calls f(out_offset, offset of each operand) once per inner run.
  template <class F>
  void each(F&& f) const noexcept {
    const Index runs = outer.count();
    if (inner == 0) return;
    std::array<Index, Shape::max_rank> at{};
    std::array<Index, max_operands> offset{};
    for (Index r = 0; r < runs; ++r) {
      f(r * inner, offset);
      for (int i = outer.rank() - 1; i >= 0; --i) {
        const auto u = static_cast<std::size_t>(i);
        for (std::size_t k = 0; k < max_operands; ++k) offset[k] += strides[k][i];
        if (++at[u] < outer[i]) break;
        for (std::size_t k = 0; k < max_operands; ++k) offset[k] -= strides[k][i] * outer[i];
        at[u] = 0;
      }
    }
  }
};

}  // namespace offramp

/// @file tensor.hpp
/// Tensors: `TensorView` looks at elements that somebody else owns, `Tensor` owns them.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <utility>

#include "offramp/core/dtype.hpp"
#include "offramp/core/shape.hpp"

namespace offramp {

/// Alignment of every buffer of the library: a cache line, and the widest vector.
inline constexpr std::size_t alignment = 64;

/// Memory aligned to `alignment`, shared between the tensors that copied it. Large buffers ask for large pages where
/// the system has them: a product reads weights as several streams, each of which needs its own page's address.
inline std::shared_ptr<std::byte> allocate_aligned(std::size_t bytes) {
  constexpr std::size_t large_page = std::size_t{1} << 21;
  const std::align_val_t at{bytes < large_page ? alignment : large_page};
  auto* p = static_cast<std::byte*>(::operator new(bytes == 0 ? 1 : bytes, at));
#ifdef __linux__
  if (bytes >= large_page) ::madvise(p, bytes, MADV_HUGEPAGE);  // a wish: without it all works as well
#endif
  return {p, [at](std::byte* q) { ::operator delete(q, at); }};
}

/// Moves bytes, and gives the pages that they leave back to the system where it takes them: of a large file in memory,
/// what was read need not stay beside what became of it. The bytes at `from` are undefined afterwards.
inline void move_bytes(void* to, std::byte* from, std::size_t bytes) noexcept {
  constexpr std::size_t part = std::size_t{1} << 22, page = std::size_t{1} << 12;
  for (std::size_t at = 0; at < bytes; at += part) {
    const std::size_t n = std::min(part, bytes - at);
    std::memcpy(static_cast<std::byte*>(to) + at, from + at, n);
#ifdef __linux__
    const auto begin = (reinterpret_cast<std::uintptr_t>(from + at) + page - 1) / page * page,
               end = reinterpret_cast<std::uintptr_t>(from + at + n) / page * page;
    if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
#endif
  }
}

/// Type, shape and address of elements in row-major order. `data` is null where only type and shape are known.
struct TensorView {
  DType type = DType::none;
  Shape shape;
  void* data = nullptr;

  Index count() const noexcept { return shape.count(); }
  std::size_t bytes() const noexcept { return static_cast<std::size_t>(count()) * size_of(type); }

  template <class T>
  T* as() const noexcept {
    return static_cast<T*>(data);
  }
  const float* f32() const noexcept { return static_cast<const float*>(data); }
};

/// An owned tensor. Copies share the elements; `mutable_data` is for whoever has just made it.
class Tensor {
 public:
  Tensor() = default;
  /// Zeroed elements. Raises an Error where the shape is not one, or above `max_bytes`.
  Tensor(DType type, const Shape& shape, Index max_bytes = Index{1} << 40)
      : Tensor(uninitialized(type, shape, max_bytes)) {
    std::memset(data_.get(), 0, bytes());
  }
  /// For whoever writes every element. The system gives the pages of a large one as they are written.
  static Tensor uninitialized(DType type, const Shape& shape, Index max_bytes = Index{1} << 40) {
    const Index bytes = checked_product(shape.checked_count(), static_cast<Index>(size_of(type)));
    if (bytes > max_bytes) {
      raise("a tensor of shape " + shape.text() + " takes " + std::to_string(bytes) + " bytes, the limit is " +
            std::to_string(max_bytes));
    }
    Tensor t;
    t.type_ = type;
    t.shape_ = shape;
    t.data_ = allocate_aligned(static_cast<std::size_t>(bytes));
    return t;
  }
  template <class T>
  static Tensor of(const Shape& shape, std::span<const T> values) {
    Tensor t(dtype_of<T>, shape);
    OFFRAMP_REQUIRE(static_cast<Index>(values.size()) == t.count(),
                    "shape " + shape.text() + " does not hold " + std::to_string(values.size()) + " values");
    if (!values.empty()) std::memcpy(t.mutable_data(), values.data(), values.size_bytes());
    return t;
  }

  DType type() const noexcept { return type_; }
  const Shape& shape() const noexcept { return shape_; }
  Index count() const noexcept { return shape_.count(); }
  std::size_t bytes() const noexcept { return static_cast<std::size_t>(count()) * size_of(type_); }
  const void* data() const noexcept { return data_.get(); }
  std::span<const std::byte> raw() const noexcept { return {data_.get(), bytes()}; }
  void* mutable_data() noexcept { return data_.get(); }
  bool empty() const noexcept { return data_ == nullptr; }

  template <class T>
  std::span<const T> values() const {
    OFFRAMP_REQUIRE(dtype_of<T> == type_, "expected a tensor of " + std::string(name_of(dtype_of<T>)) + ", found " +
                                              std::string(name_of(type_)));
    return {reinterpret_cast<const T*>(data_.get()), static_cast<std::size_t>(count())};
  }

  /// A view for reading; kernels never write through an input.
  TensorView view() const noexcept { return {type_, shape_, data_.get()}; }

  /// The same elements under another shape of the same count.
  Tensor reshaped(const Shape& shape) const {
    OFFRAMP_REQUIRE(shape.checked_count() == count(), "cannot reshape " + shape_.text() + " to " + shape.text());
    Tensor t = *this;
    t.shape_ = shape;
    return t;
  }

 private:
  DType type_ = DType::none;
  Shape shape_;
  std::shared_ptr<std::byte> data_;
};

}  // namespace offramp

/// @file movement.hpp
/// Operators that move elements and compute nothing: they count no FLOPs.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "offramp/core/config.hpp"
#include "offramp/kernel/pack.hpp"
#include "offramp/kernel/split.hpp"
#include "offramp/layer/element.hpp"
#include "offramp/layer/operation.hpp"
#include "offramp/layer/reduce.hpp"

namespace offramp {

/// Operators whose output is their input under another shape: Reshape, Flatten, Squeeze, Unsqueeze, Identity, Dropout.
class ViewOperation final : public Operation {
 public:
  ViewOperation(const Node& node, Index)
      : op_(node.op), axis_(node.integer("axis", 1)), allow_zero_(node.integer("allowzero", 0) != 0) {
    const auto* v = node.get<std::vector<Index>>(op_ == "Reshape" ? "shape" : "axes");
    if (v) numbers_ = *v, has_numbers_ = true;
  }
  InputUse use(std::size_t i) const noexcept override { return i == 0 ? InputUse::data : InputUse::shape; }
  OFFRAMP_COLD void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView& x = required_input(in, 0);
    Shape s = x.shape;
    if (op_ == "Reshape") {
      s = reshaped(x.shape, integers_of(has_numbers_ ? &numbers_ : nullptr, in, 1, "shape"));
    } else if (op_ == "Flatten") {
      const int rank = x.shape.rank();
      const int axis = axis_ == rank ? rank : normalize_axis(axis_, rank);
      s = Shape{x.shape.count(0, axis), x.shape.count(axis, rank)};
    } else if (op_ == "Squeeze") {
      s = squeezed(x.shape, integers_of(has_numbers_ ? &numbers_ : nullptr, in, 1, "axes"));
    } else if (op_ == "Unsqueeze") {
      s = unsqueezed(x.shape, integers_of(has_numbers_ ? &numbers_ : nullptr, in, 1, "axes"));
    } else if (op_ == "Dropout") {
      const TensorView *ratio = optional_input(in, 1), *training = optional_input(in, 2);
      OFFRAMP_REQUIRE((!ratio || ratio->count() == 1) && (!training || training->count() == 1),
                      "ratio and training_mode must be one element");
      const bool on = training && (!training->data || real_at(*training, 0) != 0);
      OFFRAMP_REQUIRE(!on || (ratio && ratio->data && real_at(*ratio, 0) == 0),
                      "training mode drops at random and is not supported");
    }
    set_output(out[0], x.type, s);
    if (out.size() > 1) set_output(out[1], op_ == "Dropout" ? DType::boolean : x.type, s);
  }
  bool is_view(std::span<const TensorView>, std::span<const TensorView> out) const noexcept override {
    return out.size() == 1;
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &y = run.out[0];
    if (y.data != x.data && y.count() > 0) std::memcpy(y.data, x.data, y.bytes());
    if (run.out.size() > 1 && run.out[1].data) std::memset(run.out[1].data, 1, run.out[1].bytes());
    return true;
  }

 private:
  Shape reshaped(const Shape& x, const std::vector<Index>& wanted) const {
    Shape s;
    int free_axis = -1;
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      Index n = wanted[i];
      if (n == 0 && !allow_zero_) {
        OFFRAMP_REQUIRE(static_cast<int>(i) < x.rank(), "a 0 in the new shape stands for no axis of " + x.text());
        n = x[static_cast<int>(i)];
      }
      if (n == -1) {
        OFFRAMP_REQUIRE(free_axis < 0, "two axes of the new shape are -1");
        free_axis = static_cast<int>(i);
        n = 1;
      }
      OFFRAMP_REQUIRE(n >= 0, "the new shape has a negative size");
      s.push_back(n);
    }
    if (free_axis >= 0) {
      const Index rest = s.checked_count();
      OFFRAMP_REQUIRE(rest > 0 && x.count() % rest == 0,
                      "cannot reshape " + x.text() + " to " + s.text() + " with a free axis");
      s[free_axis] = x.count() / rest;
    }
    OFFRAMP_REQUIRE(s.checked_count() == x.count(), "cannot reshape " + x.text() + " to " + s.text());
    return s;
  }
  static Shape squeezed(const Shape& x, const std::vector<Index>& axes) {
    std::array<bool, Shape::max_rank> gone{};
    for (const Index a : axes) {
      const int axis = normalize_axis(a, x.rank());
      OFFRAMP_REQUIRE(x[axis] == 1, "cannot squeeze axis " + std::to_string(a) + " of " + x.text());
      gone[static_cast<std::size_t>(axis)] = true;
    }
    Shape s;
    for (int i = 0; i < x.rank(); ++i) {
      if (axes.empty() ? x[i] != 1 : !gone[static_cast<std::size_t>(i)]) s.push_back(x[i]);
    }
    return s;
  }
  static Shape unsqueezed(const Shape& x, const std::vector<Index>& axes) {
    const int rank = x.rank() + static_cast<int>(axes.size());
    OFFRAMP_REQUIRE(axes.size() <= Shape::max_rank && rank <= Shape::max_rank, "the result has more than 8 axes");
    std::array<bool, Shape::max_rank> fresh{};
    for (const Index a : axes) {
      const auto axis = static_cast<std::size_t>(normalize_axis(a, rank));
      OFFRAMP_REQUIRE(!fresh[axis], "axis " + std::to_string(a) + " is named twice");
      fresh[axis] = true;
    }
    Shape s;
    for (int i = 0, from = 0; i < rank; ++i) s.push_back(fresh[static_cast<std::size_t>(i)] ? 1 : x[from++]);
    return s;
  }

  std::string op_;
  Index axis_;
  bool allow_zero_, has_numbers_ = false;
  std::vector<Index> numbers_;
};

namespace detail {

/// Copies n elements; a call of the library's function costs more than a few vectors do.
template <class T>
void copy_run(const T* from, T* to, Index n) noexcept {
  constexpr Index vector = 16 / sizeof(T);
  if (n > 16 * vector) {
    std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(T));
    return;
  }
  for (; n >= vector; n -= vector, from += vector, to += vector) std::memcpy(to, from, 16);
  for (Index i = 0; i < n; ++i) to[i] = from[i];
}

/// A box of elements in two tensors: its sizes, and how far apart neighbours lie in each, in elements.
struct StridedBox {
  Shape sizes, from, to;

  /// The same elements in as few axes as possible: those that follow each other in both tensors become one.
  StridedBox joined() const noexcept {
    StridedBox box;
    for (int i = 0; i < sizes.rank(); ++i) {
      if (sizes[i] == 1) continue;
      const int last = box.sizes.rank() - 1;
      if (last >= 0 && box.from[last] == sizes[i] * from[i] && box.to[last] == sizes[i] * to[i]) {
        box.sizes[last] *= sizes[i];
        box.from[last] = from[i], box.to[last] = to[i];
      } else {
        box.sizes.push_back(sizes[i]), box.from.push_back(from[i]), box.to.push_back(to[i]);
      }
    }
    return box;
  }
};

/// y[sum(i_k * to_k)] = x[sum(i_k * from_k)] for every place of the box.
template <class T>
void copy_strided(const T* x, const StridedBox& box, T* y) noexcept {
  const int rank = box.sizes.rank();
  if (rank == 0) {
    *y = *x;
    return;
  }
  const Index n = box.sizes[rank - 1], step = box.from[rank - 1], to_step = box.to[rank - 1];
  const int outer = std::max(0, rank - 2);
  const Index lines = rank > 1 ? box.sizes[outer] : 1, line = rank > 1 ? box.from[outer] : 0,
              to_line = rank > 1 ? box.to[outer] : 0;
  // The last two axes are a transposed matrix.
  const bool turns = rank > 1 && step > 1 && line == 1 && to_step == 1 && to_line == n;
  const Index parts = box.sizes.count(0, outer);
  std::array<Index, Shape::max_rank> at{};
  for (Index r = 0; r < parts; ++r) {
    if (turns) {
      kernel::transpose(x, n, lines, step, y);
    } else if (step == 1 && to_step == 1) {
      for (Index i = 0; i < lines; ++i) copy_run(x + i * line, y + i * to_line, n);
    } else {
      for (Index i = 0; i < lines; ++i) {
        for (Index k = 0; k < n; ++k) y[i * to_line + k * to_step] = x[i * line + k * step];
      }
    }
    for (int a = outer - 1; a >= 0; --a) {
      const auto u = static_cast<std::size_t>(a);
      x += box.from[a], y += box.to[a];
      if (++at[u] < box.sizes[a]) break;
      x -= box.from[a] * box.sizes[a], y -= box.to[a] * box.sizes[a];
      at[u] = 0;
    }
  }
}

/// The same for tensors of one type, from element `from` of `x` and `to` of `y` on.
inline void copy_strided(const TensorView& x, Index from, const StridedBox& all, const TensorView& y,
                         Index to) noexcept {
  if (all.sizes.count() == 0) return;
  const StridedBox box = all.joined();
  switch (size_of(x.type)) {
    case 1:
      return copy_strided(x.as<std::uint8_t>() + from, box, y.as<std::uint8_t>() + to);
    case 2:
      return copy_strided(x.as<std::uint16_t>() + from, box, y.as<std::uint16_t>() + to);
    case 4:
      return copy_strided(x.as<std::uint32_t>() + from, box, y.as<std::uint32_t>() + to);
    case 8:
      return copy_strided(x.as<std::uint64_t>() + from, box, y.as<std::uint64_t>() + to);
    default:
      return;
  }
}

/// Fills all of `y` with a strided view of `x`.
inline void gather_strided(const TensorView& x, Index first, const Shape& strides, const TensorView& y) noexcept {
  copy_strided(x, first, {y.shape, strides, strides_of(y.shape)}, y, 0);
}

}  // namespace detail

/// Transpose.
class TransposeOperation final : public Operation {
 public:
  TransposeOperation(const Node& node, Index) : perm_(node.integers("perm")) {}
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView& x = required_input(in, 0);
    const int rank = x.shape.rank();
    if (!perm_.empty()) {
      OFFRAMP_REQUIRE(static_cast<int>(perm_.size()) == rank,
                      "perm has " + std::to_string(perm_.size()) + " numbers for input " + x.shape.text());
      std::array<bool, Shape::max_rank> seen{};
      for (const Index p : perm_) {
        OFFRAMP_REQUIRE(p >= 0 && p < rank && !seen[static_cast<std::size_t>(p)], "perm is no permutation");
        seen[static_cast<std::size_t>(p)] = true;
      }
    }
    Shape s;
    for (int i = 0; i < rank; ++i) s.push_back(x.shape[axis(i, rank)]);
    set_output(out[0], x.type, s);
  }
  bool is_view(std::span<const TensorView> in, std::span<const TensorView>) const noexcept override {
    int last = -1;  // axes of more than one element keep their order
    for (int i = 0; i < in[0].shape.rank(); ++i) {
      const int a = axis(i, in[0].shape.rank());
      if (in[0].shape[a] == 1) continue;
      if (a < last) return false;
      last = a;
    }
    return true;
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView& x = run.in[0];
    const Shape own = strides_of(x.shape);
    Shape strides;
    for (int i = 0; i < x.shape.rank(); ++i) strides.push_back(own[axis(i, x.shape.rank())]);
    const TensorView& y = run.out[0];
    int first = 0;  // axis that has more than one element: parts are slices of it
    while (first < y.shape.rank() && y.shape[first] == 1) ++first;
    const auto bytes = static_cast<Index>(y.bytes());
    if (first == y.shape.rank() || !kernel::copy_pays(bytes)) {
      detail::gather_strided(x, 0, strides, y);
      return true;
    }
    const Index size = y.shape[first], slice = bytes / size;
    kernel::each_range(run.executor, size, 1, [&](kernel::Range r) {
      TensorView some = y;
      some.shape[first] = r.last - r.first;
      some.data = static_cast<std::byte*>(y.data) + r.first * slice;
      detail::gather_strided(x, r.first * strides[first], strides, some);
    });
    return true;
  }

 private:
  int axis(int i, int rank) const noexcept {
    return perm_.empty() ? rank - 1 - i : static_cast<int>(perm_[static_cast<std::size_t>(i)]);
  }
  std::vector<Index> perm_;
};

/// Concat.
class ConcatOperation final : public Operation {
 public:
  ConcatOperation(const Node& node, Index) : axis_(node.integer("axis", 1)) {}
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    Shape s = required_input(in, 0).shape;
    const int axis = normalize_axis(axis_, s.rank());
    for (std::size_t i = 1; i < in.size(); ++i) {
      const TensorView& x = required_input(in, i);
      bool fits = x.type == in[0].type && x.shape.rank() == s.rank();
      for (int k = 0; fits && k < s.rank(); ++k) fits = k == axis || x.shape[k] == s[k];
      OFFRAMP_REQUIRE(
          fits, "input " + std::to_string(i) + " of shape " + x.shape.text() + " does not fit " + in[0].shape.text());
      OFFRAMP_REQUIRE(s[axis] <= std::numeric_limits<Index>::max() - x.shape[axis], "sizes overflow");
      s[axis] += x.shape[axis];
    }
    set_output(out[0], in[0].type, s);
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView& y = run.out[0];
    const int axis = static_cast<int>(from_front(axis_, y.shape.rank()));
    const Index outer = y.shape.count(0, axis), row = y.shape.count(axis, y.shape.rank());
    Index at = 0;
    for (const TensorView& x : run.in) {
      const Index n = x.shape.count(axis, x.shape.rank());
      for (Index o = 0; o < outer; ++o) copy_elements(y.data, o * row + at, x.data, o * n, n, size_of(y.type));
      at += n;
    }
    return true;
  }

 private:
  Index axis_;
};

/// Split.
class SplitOperation final : public Operation {
 public:
  SplitOperation(const Node& node, Index)
      : axis_(node.integer("axis", 0)), uneven_(node.find("num_outputs") != nullptr) {
    if (const auto* v = node.get<std::vector<Index>>("split")) sizes_ = *v, has_sizes_ = true;
  }
  InputUse use(std::size_t i) const noexcept override { return i == 0 ? InputUse::data : InputUse::parameter; }
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView& x = required_input(in, 0);
    const int axis = normalize_axis(axis_, x.shape.rank());
    std::vector<Index> sizes = integers_of(has_sizes_ ? &sizes_ : nullptr, in, 1, "split");
    const auto parts = static_cast<Index>(out.size());
    if (sizes.empty() && uneven_) {
      const Index each = (x.shape[axis] + parts - 1) / parts;
      for (Index i = 0; i < parts; ++i) sizes.push_back(std::clamp<Index>(x.shape[axis] - i * each, 0, each));
    } else if (sizes.empty()) {
      OFFRAMP_REQUIRE(x.shape[axis] % parts == 0, "axis " + std::to_string(axis) + " of " + x.shape.text() +
                                                      " does not split into " + std::to_string(parts));
      sizes.assign(out.size(), x.shape[axis] / parts);
    }
    Index total = 0;
    for (const Index n : sizes) {
      OFFRAMP_REQUIRE(n >= 0 && n <= x.shape[axis], "split sizes are out of range");
      total += n;
    }
    OFFRAMP_REQUIRE(sizes.size() == out.size() && total == x.shape[axis], "split sizes do not fit " + x.shape.text());
    for (std::size_t i = 0; i < out.size(); ++i) {
      Shape s = x.shape;
      s[axis] = sizes[i];
      set_output(out[i], x.type, s);
    }
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView& x = run.in[0];
    const int axis = static_cast<int>(from_front(axis_, x.shape.rank()));
    const Index outer = x.shape.count(0, axis), row = x.shape.count(axis, x.shape.rank());
    Index at = 0;
    for (const TensorView& y : run.out) {
      const Index n = y.shape.count(axis, y.shape.rank());
      for (Index o = 0; y.data && o < outer; ++o)
        copy_elements(y.data, o * n, x.data, o * row + at, n, size_of(x.type));
      at += n;
    }
    return true;
  }

 private:
  Index axis_;
  bool uneven_, has_sizes_ = false;
  std::vector<Index> sizes_;
};

/// Slice, with steps of either sign.
class SliceOperation final : public Operation {
 public:
  /// What it takes of every axis: the first place, how far it is to the next one, and how many.
  struct Range {
    Shape first, step, sizes;
  };

  OFFRAMP_COLD SliceOperation(const Node& node, Index) {
    if (const auto* v = node.get<std::vector<Index>>("starts")) starts_ = *v, attributes_ = true;
    ends_ = node.integers("ends");
    axes_ = node.integers("axes");
  }
  InputUse use(std::size_t i) const noexcept override { return i == 0 ? InputUse::data : InputUse::parameter; }
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    set_output(out[0], required_input(in, 0).type, resolve(in).sizes);
  }
  void prepare(std::span<const TensorView> in, const PrepareOptions&) override {
    // The batch axis may have another size later: a slice that takes all of an axis takes all of it then, too.
    range_ = resolve(in);
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView& x = run.in[0];
    const Shape own = strides_of(x.shape);
    Shape strides;
    Index first = 0;
    for (int i = 0; i < x.shape.rank(); ++i) {
      const Index size = run.out[0].shape[i], last = range_.first[i] + (size - 1) * range_.step[i];
      if (size > 0 && (range_.first[i] >= x.shape[i] || last < 0 || last >= x.shape[i])) return false;
      first += range_.first[i] * own[i];
      strides.push_back(own[i] * range_.step[i]);
    }
    detail::gather_strided(x, first, strides, run.out[0]);
    return true;
  }

  Range resolve(std::span<const TensorView> in) const {
    const TensorView& x = required_input(in, 0);
    const auto starts = integers_of(attributes_ ? &starts_ : nullptr, in, 1, "starts");
    const auto ends = integers_of(attributes_ ? &ends_ : nullptr, in, 2, "ends");
    auto axes = integers_of(attributes_ && !axes_.empty() ? &axes_ : nullptr, in, 3, "axes");
    const auto steps = integers_of(nullptr, in, 4, "steps", std::vector<Index>(starts.size(), 1));
    if (axes.empty()) {
      axes.resize(starts.size());
      std::iota(axes.begin(), axes.end(), Index{0});
    }
    OFFRAMP_REQUIRE(ends.size() == starts.size() && axes.size() == starts.size() && steps.size() == starts.size(),
                    "starts, ends, axes and steps differ in length");
    Range r;
    r.sizes = x.shape;
    for (int i = 0; i < x.shape.rank(); ++i) {
      r.first.push_back(0);
      r.step.push_back(1);
    }
    for (std::size_t i = 0; i < starts.size(); ++i) {
      const int axis = normalize_axis(axes[i], x.shape.rank());
      const Index n = x.shape[axis], step = steps[i];
      OFFRAMP_REQUIRE(step != 0 && step > -(Index{1} << 40) && step < (Index{1} << 40), "a step is out of range");
      const auto from_end = [&](Index v) { return v < 0 ? (v < -n ? -1 : v + n) : v; };
      Index from = from_end(starts[i]), to = from_end(ends[i]);
      if (step > 0) {
        from = std::clamp<Index>(from, 0, n);
        to = std::clamp<Index>(to, 0, n);
        r.sizes[axis] = to > from ? (to - from + step - 1) / step : 0;
      } else {
        from = std::clamp<Index>(from, -1, n - 1);
        to = std::clamp<Index>(to, -1, n - 1);
        r.sizes[axis] = from > to ? (from - to - step - 1) / -step : 0;
      }
      r.first[axis] = from;
      r.step[axis] = step;
    }
    return r;
  }

 private:
  bool attributes_ = false;
  std::vector<Index> starts_, ends_, axes_;
  Range range_;
};

/// Gather, along one axis.
class GatherOperation final : public Operation {
 public:
  GatherOperation(const Node& node, Index) : axis_(node.integer("axis", 0)) {}
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView &x = required_input(in, 0), &at = required_input(in, 1);
    OFFRAMP_REQUIRE(at.type == DType::i64 || at.type == DType::i32,
                    "indices must be integers, found " + std::string(name_of(at.type)));
    const int axis = normalize_axis(axis_, x.shape.rank());
    Shape s;
    for (int i = 0; i < axis; ++i) s.push_back(x.shape[i]);
    for (const Index n : at.shape.sizes()) s.push_back(n);
    for (int i = axis + 1; i < x.shape.rank(); ++i) s.push_back(x.shape[i]);
    set_output(out[0], x.type, s);
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &at = run.in[1];
    const AxisSplit a(x.shape, static_cast<int>(from_front(axis_, x.shape.rank())));
    const Index count = at.count();
    for (Index k = 0; k < count; ++k) {
      Index i = integer_at(at, k);
      if (i < 0) i += a.n;
      if (i < 0 || i >= a.n) return false;
      for (Index o = 0; o < a.outer; ++o) {
        copy_elements(run.out[0].data, (o * count + k) * a.inner, x.data, (o * a.n + i) * a.inner, a.inner,
                      size_of(x.type));
      }
    }
    return true;
  }

 private:
  Index axis_;
};

/// GatherElements.
class GatherElementsOperation final : public Operation {
 public:
  GatherElementsOperation(const Node& node, Index) : axis_(node.integer("axis", 0)) {}
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView &x = required_input(in, 0), &at = required_input(in, 1);
    OFFRAMP_REQUIRE(at.type == DType::i64 || at.type == DType::i32,
                    "indices must be integers, found " + std::string(name_of(at.type)));
    const int axis = normalize_axis(axis_, x.shape.rank());
    bool fits = at.shape.rank() == x.shape.rank();
    for (int i = 0; fits && i < x.shape.rank(); ++i) fits = i == axis || at.shape[i] <= x.shape[i];
    OFFRAMP_REQUIRE(fits, "indices " + at.shape.text() + " do not fit " + x.shape.text());
    set_output(out[0], x.type, at.shape);
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &at = run.in[1];
    const int axis = static_cast<int>(from_front(axis_, x.shape.rank()));
    const Shape strides = strides_of(x.shape);
    for (Index k = 0; k < at.count(); ++k) {
      Index flat = k, offset = 0;
      for (int i = at.shape.rank() - 1; i >= 0; --i) {
        const Index own = flat % at.shape[i];
        flat /= at.shape[i];
        if (i != axis) offset += own * strides[i];
      }
      Index i = integer_at(at, k);
      if (i < 0) i += x.shape[axis];
      if (i < 0 || i >= x.shape[axis]) return false;
      copy_elements(run.out[0].data, k, x.data, offset + i * strides[axis], 1, size_of(x.type));
    }
    return true;
  }

 private:
  Index axis_;
};

/// GatherND.
class GatherNdOperation final : public Operation {
 public:
  GatherNdOperation(const Node& node, Index) : batch_dims_(node.integer("batch_dims", 0)) {}
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView &x = required_input(in, 0), &at = required_input(in, 1);
    OFFRAMP_REQUIRE(at.type == DType::i64, "indices must be int64, found " + std::string(name_of(at.type)));
    const int ri = at.shape.rank();
    OFFRAMP_REQUIRE(ri > 0 && batch_dims_ >= 0 && batch_dims_ < ri && batch_dims_ < x.shape.rank(),
                    "batch_dims does not fit");
    const Index depth = at.shape[ri - 1];
    const auto b = static_cast<int>(batch_dims_);
    OFFRAMP_REQUIRE(depth > 0 && depth <= x.shape.rank() - b,
                    "indices " + at.shape.text() + " do not fit " + x.shape.text());
    Shape s;
    for (int i = 0; i < ri - 1; ++i) {
      OFFRAMP_REQUIRE(i >= b || at.shape[i] == x.shape[i],
                      "batch axes of " + at.shape.text() + " and " + x.shape.text() + " differ");
      s.push_back(at.shape[i]);
    }
    for (int i = b + static_cast<int>(depth); i < x.shape.rank(); ++i) s.push_back(x.shape[i]);
    set_output(out[0], x.type, s);
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &at = run.in[1];
    const auto b = static_cast<int>(batch_dims_);
    const Index depth = at.shape[at.shape.rank() - 1], tuples = depth > 0 ? at.count() / depth : 0;
    const Index batches = x.shape.count(0, b), each = batches > 0 ? tuples / batches : 0;
    const Shape strides = strides_of(x.shape);
    const Index inner = x.shape.count(b + static_cast<int>(depth), x.shape.rank());
    for (Index t = 0; t < tuples; ++t) {
      Index offset = each > 0 ? t / each * x.shape.count(b, x.shape.rank()) : 0;
      for (Index k = 0; k < depth; ++k) {
        const int axis = b + static_cast<int>(k);
        Index i = integer_at(at, t * depth + k);
        if (i < 0) i += x.shape[axis];
        if (i < 0 || i >= x.shape[axis]) return false;
        offset += i * strides[axis];
      }
      copy_elements(run.out[0].data, t * inner, x.data, offset, inner, size_of(x.type));
    }
    return true;
  }

 private:
  Index batch_dims_;
};

/// ScatterElements and ScatterND, without and with a reduction.
class ScatterOperation final : public Operation {
 public:
  ScatterOperation(const Node& node, Index)
      : nd_(node.op == "ScatterND"), axis_(node.integer("axis", 0)), reduction_(node.text("reduction", "none")) {
    OFFRAMP_REQUIRE(reduction_ == "none" || reduction_ == "add" || reduction_ == "mul",
                    "reduction '" + reduction_ + "' is not supported");
  }
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView &x = required_input(in, 0), &at = required_input(in, 1), &u = required_input(in, 2);
    OFFRAMP_REQUIRE(at.type == DType::i64 || at.type == DType::i32, "indices must be integers");
    OFFRAMP_REQUIRE(u.type == x.type, "updates are of another type");
    if (nd_) {
      OFFRAMP_REQUIRE(at.shape.rank() > 0, "indices have no axes");
      const Index depth = at.shape[at.shape.rank() - 1];
      OFFRAMP_REQUIRE(depth > 0 && depth <= x.shape.rank(),
                      "indices " + at.shape.text() + " do not fit " + x.shape.text());
      Shape s;
      for (int i = 0; i < at.shape.rank() - 1; ++i) s.push_back(at.shape[i]);
      for (int i = static_cast<int>(depth); i < x.shape.rank(); ++i) s.push_back(x.shape[i]);
      OFFRAMP_REQUIRE(u.shape == s, "updates: expected shape " + s.text() + ", found " + u.shape.text());
    } else {
      const int axis = normalize_axis(axis_, x.shape.rank());
      bool fits = at.shape.rank() == x.shape.rank() && u.shape == at.shape;
      for (int i = 0; fits && i < x.shape.rank(); ++i) fits = i == axis || at.shape[i] <= x.shape[i];
      OFFRAMP_REQUIRE(fits,
                      "indices " + at.shape.text() + " or updates " + u.shape.text() + " do not fit " + x.shape.text());
    }
    set_output(out[0], x.type, x.shape);
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &at = run.in[1], &u = run.in[2], &y = run.out[0];
    if (y.data != x.data && y.count() > 0) std::memcpy(y.data, x.data, y.bytes());
    const Shape strides = strides_of(x.shape);
    const Index depth = nd_ ? at.shape[at.shape.rank() - 1] : 1;
    const Index inner = nd_ ? x.shape.count(static_cast<int>(depth), x.shape.rank()) : 1;
    const int axis = static_cast<int>(from_front(axis_, x.shape.rank()));
    for (Index t = 0; t < at.count() / depth; ++t) {
      Index offset = 0;
      if (nd_) {
        for (Index k = 0; k < depth; ++k) {
          Index i = integer_at(at, t * depth + k);
          if (i < 0) i += x.shape[static_cast<int>(k)];
          if (i < 0 || i >= x.shape[static_cast<int>(k)]) return false;
          offset += i * strides[static_cast<int>(k)];
        }
      } else {
        Index flat = t;
        for (int i = at.shape.rank() - 1; i >= 0; --i) {
          const Index own = flat % at.shape[i];
          flat /= at.shape[i];
          if (i != axis) offset += own * strides[i];
        }
        Index i = integer_at(at, t);
        if (i < 0) i += x.shape[axis];
        if (i < 0 || i >= x.shape[axis]) return false;
        offset += i * strides[axis];
      }
      for (Index i = 0; i < inner; ++i) {
        if (reduction_ == "none")
          copy_elements(y.data, offset + i, u.data, t * inner + i, 1, size_of(y.type));
        else if (reduction_ == "add")
          put_real(y, offset + i, real_at(y, offset + i) + real_at(u, t * inner + i));
        else
          put_real(y, offset + i, real_at(y, offset + i) * real_at(u, t * inner + i));
      }
    }
    return true;
  }

 private:
  bool nd_;
  Index axis_;
  std::string reduction_;
};

/// Expand: numpy's broadcast_to, both ways.
class ExpandOperation final : public Operation {
 public:
  ExpandOperation(const Node&, Index) {}
  InputUse use(std::size_t i) const noexcept override { return i == 0 ? InputUse::data : InputUse::shape; }
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    Shape wanted;
    for (const Index n : known_integers(required_input(in, 1), "shape")) wanted.push_back(n);
    wanted.checked_count();
    set_output(out[0], required_input(in, 0).type, broadcast_shape(in[0].shape, wanted));
  }
  bool is_view(std::span<const TensorView> in, std::span<const TensorView> out) const noexcept override {
    return in[0].shape == out[0].shape;
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &y = run.out[0];
    const Shape own = strides_of(x.shape);
    Shape strides;
    for (int i = 0; i < y.shape.rank(); ++i) {
      const int from = i - (y.shape.rank() - x.shape.rank());
      strides.push_back(from < 0 || x.shape[from] == 1 ? 0 : own[from]);
    }
    detail::gather_strided(x, 0, strides, y);
    return true;
  }
};

/// Tile.
class TileOperation final : public Operation {
 public:
  TileOperation(const Node&, Index opset) : legacy_(opset < 6) {}
  InputUse use(std::size_t i) const noexcept override { return i == 0 ? InputUse::data : InputUse::shape; }
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView& x = required_input(in, 0);
    OFFRAMP_REQUIRE(!legacy_, "tiles and axis (opset 1) are not supported");
    const auto repeats = known_integers(required_input(in, 1), "repeats");
    OFFRAMP_REQUIRE(static_cast<int>(repeats.size()) == x.shape.rank(), "repeats do not fit input " + x.shape.text());
    Shape s = x.shape;
    for (int i = 0; i < s.rank(); ++i) {
      OFFRAMP_REQUIRE(repeats[static_cast<std::size_t>(i)] >= 0, "a repeat is negative");
      s[i] = checked_product(s[i], repeats[static_cast<std::size_t>(i)]);
    }
    set_output(out[0], x.type, s);
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &y = run.out[0];
    const int rank = x.shape.rank();
    const Shape strides = strides_of(x.shape);
    if (rank == 0) {
      copy_elements(y.data, 0, x.data, 0, 1, size_of(x.type));
      return true;
    }
    const Index n = y.shape[rank - 1], own = x.shape[rank - 1];
    for (Index r = 0; n > 0 && r < y.count() / n; ++r) {
      Index flat = r, offset = 0;
      for (int i = rank - 2; i >= 0; --i) {
        offset += flat % y.shape[i] % x.shape[i] * strides[i];
        flat /= y.shape[i];
      }
      for (Index i = 0; i < n; i += own) copy_elements(y.data, r * n + i, x.data, offset, own, size_of(x.type));
    }
    return true;
  }

 private:
  bool legacy_;
};

/// Shape and Size.
class ShapeOperation final : public Operation {
 public:
  ShapeOperation(const Node& node, Index)
      : size_(node.op == "Size"), start_(node.integer("start", 0)), end_(node.integer("end", Shape::max_rank)) {}
  InputUse use(std::size_t) const noexcept override { return InputUse::shape; }
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const int rank = required_input(in, 0).shape.rank();
    set_output(out[0], DType::i64, size_ ? Shape() : Shape{std::max(0, at(end_, rank) - at(start_, rank))});
  }
  bool forward(const OperationRun& run) const noexcept override {
    const Shape& s = run.in[0].shape;
    auto* y = run.out[0].as<std::int64_t>();
    if (size_) {
      *y = s.count();
      return true;
    }
    for (int i = at(start_, s.rank()); i < at(end_, s.rank()); ++i) *y++ = s[i];
    return true;
  }

 private:
  static int at(Index v, int rank) noexcept {
    return static_cast<int>(std::clamp<Index>(from_front(v, rank), 0, rank));
  }
  bool size_;
  Index start_, end_;
};

/// ConstantOfShape and EyeLike: tensors made from a shape alone.
class FillOperation final : public Operation {
 public:
  FillOperation(const Node& node, Index)
      : eye_(node.op == "EyeLike"),
        k_(node.integer("k", 0)),
        type_(static_cast<DType>(std::clamp<Index>(node.integer("dtype", 0), 0, 255))) {
    if (const Tensor* v = node.get<Tensor>("value")) {
      OFFRAMP_REQUIRE(v->count() == 1, "value must have one element");
      value_ = *v;
    }
  }
  InputUse use(std::size_t) const noexcept override { return InputUse::shape; }
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView& x = required_input(in, 0);
    if (eye_) {
      require_rank(x, 2, 2, "input");
      set_output(out[0], type_ == DType::none ? x.type : type_, x.shape);
      return;
    }
    Shape s;
    for (const Index n : known_integers(x, "shape")) s.push_back(n);
    s.checked_count();
    set_output(out[0], value_.empty() ? DType::f32 : value_.type(), s);
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView& y = run.out[0];
    if (y.count() > 0) std::memset(y.data, 0, y.bytes());
    for (Index i = 0; eye_ && i < y.shape[0]; ++i) {
      if (i + k_ >= 0 && i + k_ < y.shape[1]) put_real(y, i * y.shape[1] + i + k_, 1);
    }
    for (Index i = 0; !value_.empty() && i < y.count(); ++i)
      copy_elements(y.data, i, value_.data(), 0, 1, size_of(y.type));
    return true;
  }

 private:
  bool eye_;
  Index k_;
  DType type_;
  Tensor value_;
};

/// Range.
class RangeOperation final : public Operation {
 public:
  RangeOperation(const Node&, Index) {}
  InputUse use(std::size_t) const noexcept override { return InputUse::parameter; }
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    for (const std::size_t i : {0u, 1u, 2u}) {
      const TensorView& x = required_input(in, i);
      OFFRAMP_REQUIRE(x.count() == 1 && x.type == in[0].type && x.type != DType::boolean,
                      "start, limit and delta must be one number of one type");
      OFFRAMP_REQUIRE(x.data != nullptr, "start, limit and delta must be known before the network runs");
    }
    const double start = real_at(in[0], 0), limit = real_at(in[1], 0), delta = real_at(in[2], 0);
    OFFRAMP_REQUIRE(delta != 0 && std::isfinite(start) && std::isfinite(limit) && std::isfinite(delta),
                    "start, limit or delta is out of range");
    const double n = std::ceil((limit - start) / delta);
    OFFRAMP_REQUIRE(n < 1e12, "the range has too many elements");
    set_output(out[0], in[0].type, Shape{n > 0 ? static_cast<Index>(n) : 0});
  }
  bool forward(const OperationRun& run) const noexcept override {
    for (Index i = 0; i < run.out[0].count(); ++i) {
      if (is_float(run.in[0].type)) {
        put_real(run.out[0], i, real_at(run.in[0], 0) + static_cast<double>(i) * real_at(run.in[2], 0));
      } else {
        put_integer(run.out[0], i, integer_at(run.in[0], 0) + i * integer_at(run.in[2], 0));
      }
    }
    return true;
  }
};

/// OneHot.
class OneHotOperation final : public Operation {
 public:
  OneHotOperation(const Node& node, Index) : axis_(node.integer("axis", -1)) {}
  InputUse use(std::size_t i) const noexcept override { return i == 1 ? InputUse::parameter : InputUse::data; }
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView &at = required_input(in, 0), &depth = required_input(in, 1), &values = required_input(in, 2);
    OFFRAMP_REQUIRE(depth.data && depth.count() == 1, "depth must be one number, known before the network runs");
    OFFRAMP_REQUIRE(values.count() == 2, "values must be two numbers");
    const Index n = integer_of(real_at(depth, 0));
    OFFRAMP_REQUIRE(n > 0, "depth must be positive");
    const int axis = normalize_axis(axis_, at.shape.rank() + 1);
    Shape s;
    for (int i = 0; i < axis; ++i) s.push_back(at.shape[i]);
    s.push_back(n);
    for (int i = axis; i < at.shape.rank(); ++i) s.push_back(at.shape[i]);
    set_output(out[0], values.type, s);
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &at = run.in[0], &values = run.in[2], &y = run.out[0];
    const AxisSplit a(y.shape, static_cast<int>(from_front(axis_, y.shape.rank())));
    for (Index o = 0; o < a.outer; ++o) {
      for (Index i = 0; i < a.inner; ++i) {
        Index hot = integer_of(real_at(at, o * a.inner + i));
        if (hot < 0) hot += a.n;
        for (Index k = 0; k < a.n; ++k)
          copy_elements(y.data, (o * a.n + k) * a.inner + i, values.data, k == hot, 1, size_of(y.type));
      }
    }
    return true;
  }

 private:
  Index axis_;
};

/// Pad: constant, edge or reflected. PaddedSlice, which `passes::join_slices` makes, pads what it takes of its input by
/// `first`, `step` and `sizes` for every axis, -1 for all of it.
class PadOperation final : public Operation {
 public:
  OFFRAMP_COLD PadOperation(const Node& node, Index)
      : mode_(node.text("mode", "constant")), value_(static_cast<double>(node.real("value", 0))) {
    if (node.op == "PaddedSlice") {
      slice_ = {Shape(node.integers("first")), Shape(node.integers("step")), Shape(node.integers("sizes"))};
      OFFRAMP_REQUIRE(mode_ == "constant", "a padded slice is padded with a constant");
    }
    if (const auto* v = node.get<std::vector<Index>>(node.find("pads") ? "pads" : "paddings"))
      pads_ = *v, has_pads_ = true;
    OFFRAMP_REQUIRE(mode_ == "constant" || mode_ == "edge" || mode_ == "reflect",
                    "mode '" + mode_ + "' is not supported");
  }
  InputUse use(std::size_t i) const noexcept override { return i == 0 ? InputUse::data : InputUse::parameter; }
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView& x = required_input(in, 0);
    const auto [begin, end] = resolve(in);
    const Shape own = taken(x.shape);
    Shape s;
    for (int i = 0; i < x.shape.rank(); ++i) {
      const Index n = own[i] + begin[i] + end[i];
      OFFRAMP_REQUIRE(n >= 0, "the output has a negative size");
      OFFRAMP_REQUIRE(mode_ == "constant" || (own[i] > 0 && (mode_ == "edge" || std::max(begin[i], end[i]) < own[i])),
                      "padding is larger than input " + x.shape.text());
      s.push_back(n);
    }
    const TensorView* v = optional_input(in, 2);
    OFFRAMP_REQUIRE(!v || (v->count() == 1 && v->type == x.type && v->data),
                    "the value must be one known element of the input's type");
    set_output(out[0], x.type, s);
  }
  void prepare(std::span<const TensorView> in, const PrepareOptions&) override {
    begin_ = resolve(in).first;
    fill_ = Tensor(in[0].type, Shape{1});
    const TensorView* v = optional_input(in, 2);
    if (v)
      copy_elements(fill_.mutable_data(), 0, v->data, 0, 1, size_of(v->type));
    else
      put_real(fill_.view(), 0, value_);
    const auto* bytes = static_cast<const std::byte*>(fill_.data());
    same_bytes_ = std::all_of(bytes, bytes + fill_.bytes(), [&](std::byte b) { return b == *bytes; });
  }
  bool forward(const OperationRun& run) const noexcept override {
    return mode_ == "constant" ? pad_constant(run.in[0], run.out[0]) : pad_own(run.in[0], run.out[0]);
  }

 private:
  Shape taken(const Shape& x) const {
    if (slice_.sizes.rank() == 0) return x;
    OFFRAMP_REQUIRE(
        slice_.first.rank() == x.rank() && slice_.step.rank() == x.rank() && slice_.sizes.rank() == x.rank(),
        "a slice of another rank than input " + x.text());
    Shape s = slice_.sizes;
    for (int i = 0; i < x.rank(); ++i) {
      if (s[i] < 0) s[i] = x[i];
    }
    return s;
  }
  // The value everywhere, then what lies inside.
  bool pad_constant(const TensorView& x, const TensorView& y) const noexcept {
    const Shape own = strides_of(x.shape), strides = strides_of(y.shape);
    detail::StridedBox box;
    Index first = 0, corner = 0;
    bool empty = false;
    for (int i = 0; i < x.shape.rank(); ++i) {
      const bool whole = slice_.sizes.rank() == 0 || slice_.sizes[i] < 0;
      const Index start = whole ? 0 : slice_.first[i], step = whole ? 1 : slice_.step[i];
      const Index n = whole ? x.shape[i] : slice_.sizes[i], cut = std::max<Index>(0, -begin_[i]),
                  place = std::max<Index>(0, begin_[i]), size = std::min(n - cut, y.shape[i] - place);
      const Index last = start + (n - 1) * step;
      if (n > 0 && (start < 0 || start >= x.shape[i] || last < 0 || last >= x.shape[i])) return false;
      empty = empty || size <= 0;
      first += (start + cut * step) * own[i], corner += place * strides[i];
      box.sizes.push_back(size), box.from.push_back(own[i] * step), box.to.push_back(strides[i]);
    }
    if (empty || box.sizes.count() < y.count()) fill(y);
    if (!empty) detail::copy_strided(x, first, box, y, corner);
    return true;
  }
  // Padded with its own elements.
  bool pad_own(const TensorView& x, const TensorView& y) const noexcept {
    const int rank = x.shape.rank();
    const Shape strides = strides_of(x.shape);
    for (Index r = 0; r < y.count(); ++r) {
      Index flat = r, from = 0;
      for (int i = rank - 1; i >= 0; --i) {
        from += position(flat % y.shape[i] - begin_[i], x.shape[i]) * strides[i];
        flat /= y.shape[i];
      }
      copy_elements(y.data, r, x.data, from, 1, size_of(x.type));
    }
    return true;
  }
  std::pair<Shape, Shape> resolve(std::span<const TensorView> in) const {
    const TensorView& x = required_input(in, 0);
    auto pads = integers_of(has_pads_ ? &pads_ : nullptr, in, 1, "pads");
    if (optional_input(in, 3)) {  // opset 18: pads of some axes only
      const auto axes = known_integers(in[3], "axes");
      OFFRAMP_REQUIRE(pads.size() == 2 * axes.size(), "pads and axes differ in length");
      std::vector<Index> all(static_cast<std::size_t>(2 * x.shape.rank()), 0);
      for (std::size_t i = 0; i < axes.size(); ++i) {
        const auto axis = static_cast<std::size_t>(normalize_axis(axes[i], x.shape.rank()));
        all[axis] = pads[i];
        all[axis + all.size() / 2] = pads[i + axes.size()];
      }
      pads = std::move(all);
    }
    OFFRAMP_REQUIRE(static_cast<int>(pads.size()) == 2 * x.shape.rank(), "pads do not fit input " + x.shape.text());
    Shape begin, end;
    for (std::size_t i = 0; i < pads.size(); ++i) {
      OFFRAMP_REQUIRE(pads[i] > -(Index{1} << 40) && pads[i] < (Index{1} << 40), "a padding is out of range");
      (i < pads.size() / 2 ? begin : end).push_back(pads[i]);
    }
    return {begin, end};
  }
  void fill(const TensorView& y) const noexcept {
    if (same_bytes_) {
      std::memset(y.data, std::to_integer<int>(*static_cast<const std::byte*>(fill_.data())), y.bytes());
      return;
    }
    for (Index i = 0; i < y.count(); ++i) copy_elements(y.data, i, fill_.data(), 0, 1, size_of(y.type));
  }
  Index position(Index p, Index n) const noexcept {
    if (p >= 0 && p < n) return p;
    if (mode_ == "edge") return p < 0 ? 0 : n - 1;
    return p < 0 ? -p : 2 * (n - 1) - p;
  }

  std::string mode_;
  double value_;
  bool has_pads_ = false;
  std::vector<Index> pads_;
  SliceOperation::Range slice_;  // of rank 0: all of the input
  Shape begin_;
  Tensor fill_;
  bool same_bytes_ = false;  // of the fill: then memset writes it
};

/// Resize and Upsample: nearest, linear and cubic, separable over all axes.
class ResizeOperation final : public Operation {
 public:
  OFFRAMP_COLD ResizeOperation(const Node& node, Index opset)
      : opset_(opset),
        upsample_(node.op == "Upsample"),
        mode_(node.text("mode", "nearest")),
        coordinates_(
            node.text("coordinate_transformation_mode", upsample_ || opset < 11 ? "asymmetric" : "half_pixel")),
        nearest_(node.text("nearest_mode", upsample_ || opset < 11 ? "floor" : "round_prefer_floor")),
        cubic_(static_cast<double>(node.real("cubic_coeff_a", -0.75f))),
        exclude_outside_(node.integer("exclude_outside", 0) != 0),
        extrapolation_(static_cast<double>(node.real("extrapolation_value", 0))),
        scales_(node.reals("scales")) {
    if (mode_ == "bilinear") mode_ = "linear";
    OFFRAMP_REQUIRE(mode_ == "nearest" || mode_ == "linear" || mode_ == "cubic",
                    "mode '" + mode_ + "' is not supported");
    OFFRAMP_REQUIRE(node.find("axes") == nullptr && node.integer("antialias", 0) == 0,
                    "axes and antialias are not supported");
  }
  InputUse use(std::size_t i) const noexcept override { return i == 0 ? InputUse::data : InputUse::parameter; }
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView& x = required_input(in, 0);
    OFFRAMP_REQUIRE(is_float(x.type) || mode_ == "nearest", "cannot take " + std::string(name_of(x.type)));
    OFFRAMP_REQUIRE(x.count() > 0, "input " + x.shape.text() + " is empty");
    set_output(out[0], x.type, resolve(in).first);
  }
  void prepare(std::span<const TensorView> in, const PrepareOptions&) override {
    const auto [sizes, scales] = resolve(in);
    const TensorView& x = in[0];
    std::vector<double> roi(static_cast<std::size_t>(2 * x.shape.rank()), 0.0);
    if (coordinates_ == "tf_crop_and_resize") {
      const TensorView& r = required_input(in, 1);
      OFFRAMP_REQUIRE(r.data && r.count() == 2 * x.shape.rank() && is_float(r.type),
                      "roi does not fit input " + x.shape.text());
      for (Index i = 0; i < r.count(); ++i) roi[static_cast<std::size_t>(i)] = real_at(r, i);
    }
    taps_.assign(static_cast<std::size_t>(x.shape.rank()), {});
    for (int a = 0; a < x.shape.rank(); ++a) {
      for (Index o = 0; o < sizes[a]; ++o) {
        taps_[static_cast<std::size_t>(a)].push_back(tap(o, x.shape[a], sizes[a], scales[static_cast<std::size_t>(a)],
                                                         roi[static_cast<std::size_t>(a)],
                                                         roi[static_cast<std::size_t>(a + x.shape.rank())]));
      }
    }
  }
  Cost cost(std::span<const TensorView>, std::span<const TensorView> out) const noexcept override {
    return Cost::plain(mode_ == "nearest" ? 0 : out[0].count() * (mode_ == "linear" ? 7 : 31));
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &y = run.out[0];
    const int rank = x.shape.rank();
    const Shape strides = strides_of(x.shape);
    for (Index o = 0; o < y.count(); ++o) {
      std::array<const Tap*, Shape::max_rank> at{};
      Index flat = o;
      bool outside = false;
      for (int a = rank - 1; a >= 0; --a) {
        const auto& line = taps_[static_cast<std::size_t>(a)];
        // An axis that is not resized (the batch may differ from run to run) reads where it writes.
        const Index p = flat % y.shape[a];
        at[static_cast<std::size_t>(a)] =
            static_cast<std::size_t>(p) < line.size() ? &line[static_cast<std::size_t>(p)] : nullptr;
        flat /= y.shape[a];
        outside = outside || (at[static_cast<std::size_t>(a)] && at[static_cast<std::size_t>(a)]->outside);
      }
      if (outside) {
        put_real(y, o, extrapolation_);
      } else if (mode_ == "nearest") {
        Index offset = 0;
        flat = o;
        for (int a = rank - 1; a >= 0; --a) {
          const Index p = flat % y.shape[a];
          flat /= y.shape[a];
          offset += (x.shape[a] == y.shape[a] || !at[static_cast<std::size_t>(a)]
                         ? p
                         : at[static_cast<std::size_t>(a)]->from[0]) *
                    strides[a];
        }
        copy_elements(y.data, o, x.data, offset, 1, size_of(x.type));
      } else {
        put_real(y, o, blend(x, y, strides, at, o));
      }
    }
    return true;
  }

 private:
  struct Tap {
    std::array<Index, 4> from{};
    std::array<double, 4> weight{};
    int count = 1;
    bool outside = false;
  };

  double blend(const TensorView& x, const TensorView& y, const Shape& strides,
               const std::array<const Tap*, Shape::max_rank>& at, Index o) const noexcept {
    const int rank = x.shape.rank();
    std::array<int, Shape::max_rank> k{};
    std::array<Index, Shape::max_rank> fixed{};
    Index flat = o;
    for (int a = rank - 1; a >= 0; --a) {
      fixed[static_cast<std::size_t>(a)] =
          x.shape[a] == y.shape[a] && coordinates_ != "tf_crop_and_resize" ? flat % y.shape[a] : -1;
      flat /= y.shape[a];
    }
    double sum = 0;
    while (true) {
      double weight = 1;
      Index offset = 0;
      for (int a = 0; a < rank; ++a) {
        const auto u = static_cast<std::size_t>(a);
        if (fixed[u] >= 0) {
          offset += fixed[u] * strides[a];
        } else {
          weight *= at[u]->weight[static_cast<std::size_t>(k[u])];
          offset += at[u]->from[static_cast<std::size_t>(k[u])] * strides[a];
        }
      }
      if (weight != 0) sum += weight * real_at(x, offset);
      int a = rank - 1;
      for (; a >= 0; --a) {
        const auto u = static_cast<std::size_t>(a);
        if (fixed[u] < 0 && ++k[u] < at[u]->count) break;
        k[u] = 0;
      }
      if (a < 0) return sum;
    }
  }

  Tap tap(Index o, Index n, Index size, double scale, double start, double end) const {
    const auto out = static_cast<double>(o), in_size = static_cast<double>(n), out_size = static_cast<double>(size);
    double x = 0;
    Tap t;
    if (coordinates_ == "asymmetric")
      x = out / scale;
    else if (coordinates_ == "align_corners")
      x = size > 1 ? out * (in_size - 1) / (out_size - 1) : 0;
    else if (coordinates_ == "half_pixel")
      x = (out + 0.5) / scale - 0.5;
    else if (coordinates_ == "pytorch_half_pixel")
      x = size > 1 ? (out + 0.5) / scale - 0.5 : 0;
    else if (coordinates_ == "tf_half_pixel_for_nn")
      x = (out + 0.5) / scale;
    else if (coordinates_ == "tf_crop_and_resize") {
      x = size > 1 ? start * (in_size - 1) + out * (end - start) * (in_size - 1) / (out_size - 1)
                   : 0.5 * (start + end) * (in_size - 1);
      t.outside = x < 0 || x > in_size - 1;
    } else
      raise("coordinate_transformation_mode '" + coordinates_ + "' is not supported");
    const auto clamp = [&](double v) { return static_cast<Index>(std::clamp(v, 0.0, in_size - 1)); };
    if (mode_ == "nearest") {
      double r = std::floor(x);
      if (nearest_ == "ceil")
        r = std::ceil(x);
      else if (nearest_ == "round_prefer_ceil")
        r = std::floor(x + 0.5);
      else if (nearest_ == "round_prefer_floor")
        r = std::ceil(x - 0.5);
      else
        OFFRAMP_REQUIRE(nearest_ == "floor", "nearest_mode '" + nearest_ + "' is not supported");
      t.from[0] = clamp(r);
      t.weight[0] = 1;
    } else if (mode_ == "linear") {
      const double low = std::floor(x), part = x - low;
      t.count = 2;
      t.from = {clamp(low), clamp(low + 1), 0, 0};
      t.weight = {1 - part, part, 0, 0};
    } else {
      const double low = std::floor(x), s = x - low, a = cubic_;
      t.count = 4;
      t.weight = {((a * (s + 1) - 5 * a) * (s + 1) + 8 * a) * (s + 1) - 4 * a, ((a + 2) * s - (a + 3)) * s * s + 1,
                  ((a + 2) * (1 - s) - (a + 3)) * (1 - s) * (1 - s) + 1,
                  ((a * (2 - s) - 5 * a) * (2 - s) + 8 * a) * (2 - s) - 4 * a};
      double sum = 0;
      for (std::size_t i = 0; i < 4; ++i) {
        const double p = low - 1 + static_cast<double>(i);
        if (exclude_outside_ && (p < 0 || p > in_size - 1)) t.weight[i] = 0;
        t.from[i] = clamp(p);
        sum += t.weight[i];
      }
      for (double& w : t.weight) w /= exclude_outside_ ? sum : 1;
    }
    return t;
  }

  std::pair<Shape, std::vector<double>> resolve(std::span<const TensorView> in) const {
    const TensorView& x = required_input(in, 0);
    const int rank = x.shape.rank();
    const std::size_t scales_at = upsample_ || opset_ < 11 ? 1 : 2;
    std::vector<double> scales(scales_.begin(), scales_.end());
    Shape sizes;
    const TensorView* s = optional_input(in, scales_at);
    const TensorView* wanted = upsample_ ? nullptr : optional_input(in, 3);
    if (wanted && wanted->count() > 0) {
      const auto numbers = known_integers(*wanted, "sizes");
      OFFRAMP_REQUIRE(static_cast<int>(numbers.size()) == rank, "sizes do not fit input " + x.shape.text());
      scales.clear();
      for (int i = 0; i < rank; ++i) {
        const Index n = numbers[static_cast<std::size_t>(i)];
        OFFRAMP_REQUIRE(n > 0 && n < Index{1} << 32, "a size is out of range");
        sizes.push_back(n);
        scales.push_back(static_cast<double>(n) / static_cast<double>(x.shape[i]));
      }
      return {sizes, scales};
    }
    if (s && s->count() > 0) {
      OFFRAMP_REQUIRE(s->data && is_float(s->type), "scales must be known before the network runs");
      scales.clear();
      for (Index i = 0; i < s->count(); ++i) scales.push_back(real_at(*s, i));
    }
    OFFRAMP_REQUIRE(static_cast<int>(scales.size()) == rank, "scales do not fit input " + x.shape.text());
    for (int i = 0; i < rank; ++i) {
      const double n = std::floor(static_cast<double>(x.shape[i]) * scales[static_cast<std::size_t>(i)]);
      OFFRAMP_REQUIRE(n >= 1 && n < 4294967296.0, "a scale is out of range");
      sizes.push_back(static_cast<Index>(n));
    }
    return {sizes, scales};
  }

  Index opset_;
  bool upsample_;
  std::string mode_, coordinates_, nearest_;
  double cubic_;
  bool exclude_outside_;
  double extrapolation_;
  std::vector<float> scales_;
  std::vector<std::vector<Tap>> taps_;
};

/// DepthToSpace and SpaceToDepth.
class SpaceDepthOperation final : public Operation {
 public:
  SpaceDepthOperation(const Node& node, Index)
      : to_space_(node.op == "DepthToSpace"),
        crd_(node.text("mode", "DCR") == "CRD"),
        block_(node.integer("blocksize", 0)) {
    OFFRAMP_REQUIRE(block_ > 0 && block_ < Index{1} << 20, "blocksize is out of range");
  }
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView& x = required_input(in, 0);
    require_rank(x, 4, 4, "input");
    const Index b = block_;
    if (to_space_) {
      OFFRAMP_REQUIRE(x.shape[1] % (b * b) == 0, "channels of " + x.shape.text() + " are not divisible by the block");
      set_output(out[0], x.type,
                 {x.shape[0], x.shape[1] / (b * b), checked_product(x.shape[2], b), checked_product(x.shape[3], b)});
    } else {
      OFFRAMP_REQUIRE(x.shape[2] % b == 0 && x.shape[3] % b == 0,
                      "height or width of " + x.shape.text() + " is not divisible by the block");
      set_output(out[0], x.type, {x.shape[0], checked_product(x.shape[1], b * b), x.shape[2] / b, x.shape[3] / b});
    }
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &y = run.out[0];
    const Shape& fine = (to_space_ ? y : x).shape;  // the one with the larger image
    const Shape& deep = (to_space_ ? x : y).shape;
    const Index b = block_;
    for (Index n = 0; n < fine[0]; ++n) {
      for (Index c = 0; c < fine[1]; ++c) {
        for (Index h = 0; h < fine[2]; ++h) {
          for (Index w = 0; w < fine[3]; ++w) {
            const Index cell = h % b * b + w % b;
            const Index channel = to_space_ && crd_ ? c * b * b + cell : cell * fine[1] + c;
            const Index i = ((n * fine[1] + c) * fine[2] + h) * fine[3] + w;
            const Index j = ((n * deep[1] + channel) * deep[2] + h / b) * deep[3] + w / b;
            copy_elements(y.data, to_space_ ? i : j, x.data, to_space_ ? j : i, 1, size_of(x.type));
          }
        }
      }
    }
    return true;
  }

 private:
  bool to_space_, crd_;
  Index block_;
};

/// Trilu: one triangle of a matrix.
class TriluOperation final : public Operation {
 public:
  TriluOperation(const Node& node, Index) : upper_(node.integer("upper", 1) != 0) {}
  InputUse use(std::size_t i) const noexcept override { return i == 0 ? InputUse::data : InputUse::parameter; }
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView& x = required_input(in, 0);
    require_rank(x, 2, Shape::max_rank, "input");
    if (optional_input(in, 1)) OFFRAMP_REQUIRE(known_integers(in[1], "k").size() == 1, "k must be one number");
    set_output(out[0], x.type, x.shape);
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &y = run.out[0];
    const TensorView* given = optional_input(run.in, 1);
    const Index k = given ? std::clamp<Index>(integer_at(*given, 0), -(Index{1} << 40), Index{1} << 40) : 0;
    const Index rows = x.shape[x.shape.rank() - 2], columns = x.shape[x.shape.rank() - 1];
    if (y.count() > 0) std::memset(y.data, 0, y.bytes());
    for (Index i = 0; i < x.count(); ++i) {
      const Index r = i / columns % rows, c = i % columns;
      if (upper_ ? c - r >= k : c - r <= k) copy_elements(y.data, i, x.data, i, 1, size_of(x.type));
    }
    return true;
  }

 private:
  bool upper_;
};

}  // namespace offramp

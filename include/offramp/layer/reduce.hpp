/// @file reduce.hpp
/// Everything that folds axes: reductions, ArgMax and ArgMin, running sums, the largest k.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "offramp/layer/element.hpp"
#include "offramp/layer/operation.hpp"

namespace offramp {

/// A fold over elements: start, step and finish. One loop serves all of them.
struct Reduction {
  std::string_view name;
  double start;
  double (*step)(double accumulated, double x);
  double (*finish)(double accumulated, double count);
  bool keeps_integers;  ///< exact on integer types
  Index flops;          ///< for each input element
};

inline constexpr Reduction reductions[] = {
    {"ReduceSum", 0, [](double a, double x) { return a + x; }, [](double a, double) { return a; }, true, 1},
    {"ReduceMean", 0, [](double a, double x) { return a + x; }, [](double a, double n) { return a / n; }, false, 1},
    {"ReduceProd", 1, [](double a, double x) { return a * x; }, [](double a, double) { return a; }, true, 1},
    {"ReduceMax", -std::numeric_limits<double>::infinity(),
     [](double a, double x) { return a != a            ? a
                                     : x > a || x != x ? x
                                                       : a; }, [](double a, double) { return a; }, true,
     1},
    {"ReduceMin", std::numeric_limits<double>::infinity(),
     [](double a, double x) { return a != a            ? a
                                     : x < a || x != x ? x
                                                       : a; }, [](double a, double) { return a; }, true,
     1},
    {"ReduceL1", 0, [](double a, double x) { return a + std::fabs(x); }, [](double a, double) { return a; }, true, 2},
    {"ReduceL2", 0, [](double a, double x) { return a + x * x; }, [](double a, double) { return std::sqrt(a); }, false,
     2},
    {"ReduceSumSquare", 0, [](double a, double x) { return a + x * x; }, [](double a, double) { return a; }, true, 2},
    {"ReduceLogSum", 0, [](double a, double x) { return a + x; }, [](double a, double) { return std::log(a); }, false,
     1},
    {"ReduceLogSumExp", 0, [](double a, double x) { return a + std::exp(x); },
     [](double a, double) { return std::log(a); }, false, 2},
};

/// Any row of `reductions`.
class ReduceOperation final : public Operation {
 public:
  ReduceOperation(const Node& node, Index)
      : f_(*std::ranges::find(reductions, std::string_view(node.op), &Reduction::name)),
        keep_(node.integer("keepdims", 1) != 0),
        noop_(node.integer("noop_with_empty_axes", 0) != 0) {
    if (const auto* axes = node.get<std::vector<Index>>("axes")) axes_ = *axes, has_axes_ = true;
  }
  InputUse use(std::size_t i) const noexcept override { return i == 0 ? InputUse::data : InputUse::parameter; }
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView& x = required_input(in, 0);
    OFFRAMP_REQUIRE(is_float(x.type) || (f_.keeps_integers && x.type != DType::boolean),
                    "cannot take " + std::string(name_of(x.type)));
    const auto folded = folded_axes(in);
    Shape s;
    for (int i = 0; i < x.shape.rank(); ++i) {
      if (!folded[static_cast<std::size_t>(i)]) {
        s.push_back(x.shape[i]);
      } else if (keep_) {
        s.push_back(1);
      }
    }
    set_output(out[0], x.type, s);
  }
  void prepare(std::span<const TensorView> in, const PrepareOptions&) override {
    const auto folded = folded_axes(in);
    std::copy(folded.begin(), folded.end(), folded_.begin());
    int from = 0, to = in[0].shape.rank();
    while (from < to && !folded_[static_cast<std::size_t>(from)]) ++from;
    while (to > from && !folded_[static_cast<std::size_t>(to - 1)]) --to;
    from_ = from, to_ = to;
    joined_ = from < to && std::all_of(folded_.begin() + from, folded_.begin() + to, [](bool b) { return b; });
  }
  Cost cost(std::span<const TensorView> in, std::span<const TensorView>) const noexcept override {
    return Cost::plain(in[0].count() * f_.flops);
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &y = run.out[0];
    if (y.count() == 0) return true;
    if (x.type == DType::f32 && joined_ && (f_.name == "ReduceMean" || f_.name == "ReduceSum") && x.count() > 0) {
      const Index outer = x.shape.count(0, from_), n = x.shape.count(from_, to_),
                  inner = x.shape.count(to_, x.shape.rank());
      const float scale = f_.name == "ReduceMean" ? 1 / static_cast<float>(n) : 1;
      for (Index o = 0; o < outer; ++o) {
        if (inner == 1) {
          y.as<float>()[o] = run.kernels.sum(x.f32() + o * n, n) * scale;
        } else {
          run.kernels.sum_rows(x.f32() + o * n * inner, y.as<float>() + o * inner, n, inner, scale);
        }
      }
      return true;
    }
    // Walk the kept axes outside and the folded ones inside.
    const Shape strides = strides_of(x.shape);
    Shape kept, folded, kept_strides, folded_strides;
    for (int i = 0; i < x.shape.rank(); ++i) {
      const bool fold = folded_[static_cast<std::size_t>(i)];
      (fold ? folded : kept).push_back(x.shape[i]);
      (fold ? folded_strides : kept_strides).push_back(strides[i]);
    }
    const Index n = folded.count();
    for (Index o = 0; o < y.count(); ++o) {
      const Index first = offset_of(o, kept, kept_strides);
      if (!is_float(x.type)) {
        put_integer(y, o, fold_integers(x, first, n, folded, folded_strides));
        continue;
      }
      double shift = 0;
      if (f_.name == "ReduceLogSumExp") {
        shift = -std::numeric_limits<double>::infinity();
        for (Index i = 0; i < n; ++i) shift = std::max(shift, real_at(x, first + offset_of(i, folded, folded_strides)));
        if (!std::isfinite(shift)) shift = 0;
      }
      double v = f_.start;
      for (Index i = 0; i < n; ++i) v = f_.step(v, real_at(x, first + offset_of(i, folded, folded_strides)) - shift);
      put_real(y, o, f_.finish(v, static_cast<double>(n)) + shift);
    }
    return true;
  }

 private:
  static Index offset_of(Index flat, const Shape& sizes, const Shape& strides) noexcept {
    Index offset = 0;
    for (int i = sizes.rank() - 1; i >= 0; --i) {
      offset += flat % sizes[i] * strides[i];
      flat /= sizes[i];
    }
    return offset;
  }
  std::int64_t fold_integers(const TensorView& x, Index first, Index n, const Shape& sizes,
                             const Shape& strides) const noexcept {
    std::int64_t v = f_.name == "ReduceProd" ? 1 : 0;
    for (Index i = 0; i < n; ++i) {
      const std::int64_t e = integer_at(x, first + offset_of(i, sizes, strides));
      if (f_.name == "ReduceMax")
        v = i == 0 ? e : std::max(v, e);
      else if (f_.name == "ReduceMin")
        v = i == 0 ? e : std::min(v, e);
      else if (f_.name == "ReduceProd")
        v = static_cast<std::int64_t>(static_cast<std::uint64_t>(v) * static_cast<std::uint64_t>(e));
      else
        v = static_cast<std::int64_t>(static_cast<std::uint64_t>(v) +
                                      static_cast<std::uint64_t>(f_.name == "ReduceL1"          ? (e < 0 ? -e : e)
                                                                 : f_.name == "ReduceSumSquare" ? e * e
                                                                                                : e));
    }
    return v;
  }
  std::vector<bool> folded_axes(std::span<const TensorView> in) const {
    const int rank = in[0].shape.rank();
    std::vector<Index> axes = integers_of(has_axes_ ? &axes_ : nullptr, in, 1, "axes");
    std::vector<bool> folded(static_cast<std::size_t>(rank), axes.empty() && !noop_);
    for (const Index a : axes) folded[static_cast<std::size_t>(normalize_axis(a, rank))] = true;
    return folded;
  }

  const Reduction& f_;
  bool keep_, noop_, has_axes_ = false, joined_ = false;
  std::vector<Index> axes_;
  std::array<bool, Shape::max_rank> folded_{};
  int from_ = 0, to_ = 0;
};

/// Outer, own and inner extents of one axis: most operators of one axis need just these.
struct AxisSplit {
  Index outer, n, inner;
  AxisSplit(const Shape& s, int axis) noexcept
      : outer(s.count(0, axis)), n(s[axis]), inner(s.count(axis + 1, s.rank())) {}
};

/// ArgMax and ArgMin.
class ArgOperation final : public Operation {
 public:
  ArgOperation(const Node& node, Index)
      : max_(node.op == "ArgMax"),
        keep_(node.integer("keepdims", 1) != 0),
        last_(node.integer("select_last_index", 0) != 0),
        axis_(node.integer("axis", 0)) {}
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView& x = required_input(in, 0);
    const int axis = normalize_axis(axis_, x.shape.rank());
    OFFRAMP_REQUIRE(x.shape[axis] > 0, "axis of size 0 in " + x.shape.text());
    Shape s;
    for (int i = 0; i < x.shape.rank(); ++i) {
      if (i != axis || keep_) s.push_back(i == axis ? 1 : x.shape[i]);
    }
    set_output(out[0], DType::i64, s);
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView& x = run.in[0];
    const AxisSplit a(x.shape, static_cast<int>(from_front(axis_, x.shape.rank())));
    for (Index o = 0; o < a.outer; ++o) {
      for (Index i = 0; i < a.inner; ++i) {
        const Index first = o * a.n * a.inner + i;
        Index best = 0;
        for (Index k = 1; k < a.n; ++k) {
          const double v = real_at(x, first + k * a.inner), b = real_at(x, first + best * a.inner);
          if (max_ ? v > b : v < b)
            best = k;
          else if (last_ && v == b)
            best = k;
        }
        run.out[0].as<std::int64_t>()[o * a.inner + i] = best;
      }
    }
    return true;
  }

 private:
  bool max_, keep_, last_;
  Index axis_;
};

/// CumSum.
class CumSumOperation final : public Operation {
 public:
  CumSumOperation(const Node& node, Index)
      : exclusive_(node.integer("exclusive", 0) != 0), reverse_(node.integer("reverse", 0) != 0) {}
  InputUse use(std::size_t i) const noexcept override { return i == 0 ? InputUse::data : InputUse::parameter; }
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const auto axis = known_integers(required_input(in, 1), "axis");
    OFFRAMP_REQUIRE(axis.size() == 1, "axis must be one number");
    normalize_axis(axis[0], required_input(in, 0).shape.rank());
    set_output(out[0], in[0].type, in[0].shape);
  }
  Cost cost(std::span<const TensorView> in, std::span<const TensorView>) const noexcept override {
    return Cost::plain(in[0].count());
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &y = run.out[0];
    const Index axis = integer_at(run.in[1], 0);
    const AxisSplit a(x.shape, static_cast<int>(from_front(axis, x.shape.rank())));
    for (Index o = 0; o < a.outer; ++o) {
      for (Index i = 0; i < a.inner; ++i) {
        double sum = 0;
        std::uint64_t whole = 0;
        for (Index k = 0; k < a.n; ++k) {
          const Index at = (o * a.n + (reverse_ ? a.n - 1 - k : k)) * a.inner + i;
          if (is_float(x.type)) {
            const double v = real_at(x, at);
            put_real(y, at, exclusive_ ? sum : sum + v);
            sum += v;
          } else {
            const auto v = static_cast<std::uint64_t>(integer_at(x, at));
            put_integer(y, at, static_cast<std::int64_t>(exclusive_ ? whole : whole + v));
            whole += v;
          }
        }
      }
    }
    return true;
  }

 private:
  bool exclusive_, reverse_;
};

/// TopK: values and their positions along an axis.
class TopKOperation final : public Operation {
 public:
  TopKOperation(const Node& node, Index)
      : axis_(node.integer("axis", -1)), k_(node.integer("k", -1)), largest_(node.integer("largest", 1) != 0) {}
  InputUse use(std::size_t i) const noexcept override { return i == 0 ? InputUse::data : InputUse::parameter; }
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView& x = required_input(in, 0);
    const int axis = normalize_axis(axis_, x.shape.rank());
    const auto k = integers_of(nullptr, in, 1, "k", {k_});
    OFFRAMP_REQUIRE(k.size() == 1 && k[0] >= 0 && k[0] <= x.shape[axis],
                    "k does not fit axis " + std::to_string(axis) + " of " + x.shape.text());
    Shape s = x.shape;
    s[axis] = k[0];
    set_output(out[0], x.type, s);
    if (out.size() > 1) set_output(out[1], DType::i64, s);
  }
  std::size_t scratch_bytes(std::span<const TensorView> in, std::span<const TensorView>,
                            Index) const noexcept override {
    const Shape& s = in[0].shape;
    return static_cast<std::size_t>(s[static_cast<int>(from_front(axis_, s.rank()))]) * sizeof(Index);
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &y = run.out[0];
    const int axis = static_cast<int>(from_front(axis_, x.shape.rank()));
    const AxisSplit a(x.shape, axis);
    const Index k = y.shape[axis];
    auto* order = reinterpret_cast<Index*>(run.scratch);
    for (Index o = 0; o < a.outer && k > 0; ++o) {
      for (Index i = 0; i < a.inner; ++i) {
        const auto value = [&](Index n) { return real_at(x, (o * a.n + n) * a.inner + i); };
        for (Index n = 0; n < a.n; ++n) order[n] = n;
        std::partial_sort(order, order + k, order + a.n, [&](Index p, Index q) {
          const double u = value(p), v = value(q);
          if (u == v || u != u || v != v) return (u != u) != (v != v) ? v != v : p < q;  // NaN last
          return largest_ ? u > v : u < v;
        });
        for (Index n = 0; n < k; ++n) {
          const Index to = (o * k + n) * a.inner + i;
          copy_elements(y.data, to, x.data, (o * a.n + order[n]) * a.inner + i, 1, size_of(x.type));
          if (run.out.size() > 1 && run.out[1].data) run.out[1].as<std::int64_t>()[to] = order[n];
        }
      }
    }
    return true;
  }

 private:
  Index axis_, k_;
  bool largest_;
};

}  // namespace offramp

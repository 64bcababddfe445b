/// @file attention.hpp
/// Attention as graphs state it, in one operation: a product, a softmax, a second product.
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "offramp/kernel/pack.hpp"
#include "offramp/kernel/split.hpp"
#include "offramp/layer/element.hpp"
#include "offramp/layer/operation.hpp"

namespace offramp {

/// softmax(scale q k^T + mask) v, for each index of the axes in front (heads, images). Fused from a graph's nodes.
///
/// Seen through the permutations in the attributes `q_axes`, `k_axes`, `v_axes` and `y_axes` (axis i is axis `axes[i]`
/// of the tensor), inputs are q [..., rows, depth], k [..., keys, depth], v [..., keys, width] and perhaps a mask that
/// broadcasts to [..., rows, keys]; the output is [..., rows, width]. The last axis of q and of the output stays last.
///
/// Scores of a block of rows stay in cache and are never a tensor; the idea is that of FlashAttention (Dao et al.
/// 2022), but as all keys of a block fit, its running softmax is not needed.
class AttentionOperation final : public Operation {
 public:
  AttentionOperation(const Node& node, Index) : scale_(node.real("scale", 1)) {
    const std::array<const char*, 4> names{"q_axes", "k_axes", "v_axes", "y_axes"};
    for (std::size_t i = 0; i < names.size(); ++i) {
      axes_[i] = node.integers(names[i]);
      unsigned seen = 0;  // a bit for each axis
      for (const Index a : axes_[i]) seen |= a >= 0 && a < Shape::max_rank ? 1U << a : 0;
      const std::size_t rank = axes_[0].size();
      OFFRAMP_REQUIRE(rank <= Shape::max_rank && axes_[i].size() == rank && seen + 1 == 1U << rank,
                      "axes of attention");
    }
  }

  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const int rank = float_input(in, 0).shape.rank();
    std::array<Shape, 3> s;
    for (std::size_t i = 0; i < 3; ++i) {
      const TensorView& x = float_input(in, i);
      OFFRAMP_REQUIRE(rank >= 2 && x.shape.rank() == rank && static_cast<int>(axes_[i].size()) == rank,
                      "operands of attention must have as many axes");
      for (int a = 0; a < rank; ++a) s[i].push_back(x.shape[axis(i, a)]);
    }
    const auto& [q, k, v] = s;
    bool fits = q[rank - 1] == k[rank - 1] && k[rank - 2] == v[rank - 2];
    for (int a = 0; a + 2 < rank; ++a) fits = fits && q[a] == k[a] && q[a] == v[a];
    OFFRAMP_REQUIRE(fits, "q, k and v of attention do not fit");
    Shape scores = q, y = q;
    scores[rank - 1] = k[rank - 2];
    if (optional_input(in, 3))
      OFFRAMP_REQUIRE(broadcast_shape(scores, float_input(in, 3).shape) == scores,
                      "a mask does not broadcast to " + scores.text());
    for (int a = 0; a < rank; ++a) y[axis(3, a)] = a == rank - 1 ? v[a] : q[a];
    set_output(out[0], DType::f32, y);
  }
  Index executed(std::span<const TensorView> in, std::span<const TensorView> out) const noexcept override {
    const Sizes n(*this, in, out);
    const Index products = 2 * (n.depth * kernel::padded_columns(n.keys) + n.keys * kernel::padded_columns(n.width));
    return n.heads * n.rows * (products + (19 + Index{optional_input(in, 3) != nullptr}) * n.keys);
  }
  std::size_t scratch_bytes(std::span<const TensorView> in, std::span<const TensorView> out,
                            Index threads) const noexcept override {
    const Sizes n(*this, in, out);
    return static_cast<std::size_t>(threads * n.slot()) * sizeof(float);
  }
  std::string algorithm() const override { return "scores in cache"; }

  bool forward(const OperationRun& run) const noexcept override {
    const Sizes n(*this, run.in, run.out);
    if (run.out[0].count() == 0) return true;
    if (n.keys == 0) {
      std::fill_n(run.out[0].as<float>(), run.out[0].count(), 0.0f);
      return true;
    }
    const Index blocks = (n.rows + n.block - 1) / n.block, threads = std::min(run.executor.threads(), n.heads * blocks);
    run.executor.each(threads, [&](Index t) {
      const kernel::Range own = kernel::part_of(n.heads * blocks, 1, threads, t);
      float* scratch = reinterpret_cast<float*>(run.scratch) + t * n.slot();
      for (Index i = own.first; i < own.last; ++i) {
        const Index head = i / blocks, first = i % blocks * n.block;
        if (i == own.first || first == 0) pack(run, n, head, scratch);
        attend(run, n, head, first, std::min(n.block, n.rows - first), scratch);
      }
    });
    return true;
  }

 private:
  // Strides of an operand, axes as this operation sees them.
  struct Strides {
    std::array<Index, Shape::max_rank> of{};
    Strides(const Shape& shape, const std::vector<Index>& axes) noexcept {
      const Shape own = strides_of(shape);
      for (std::size_t i = 0; i < axes.size(); ++i) of[i] = own[static_cast<int>(axes[i])];
    }
  };
  struct Sizes {
    Index heads = 1, rows, depth, keys, width, block;
    Sizes(const AttentionOperation& op, std::span<const TensorView> in, std::span<const TensorView> out) noexcept {
      const int rank = in[0].shape.rank();
      for (int a = 0; a + 2 < rank; ++a) heads *= in[0].shape[op.axis(0, a)];
      rows = in[0].shape[op.axis(0, rank - 2)], depth = in[0].shape[op.axis(0, rank - 1)];
      keys = in[1].shape[op.axis(1, rank - 2)], width = out[0].shape[op.axis(3, rank - 1)];
      // Scores of no more than 128 KB, whole tiles of rows.
      constexpr Index most = Index{32} << 10, tile = 14;
      block = std::max(tile, most / std::max<Index>(1, score_row()) / tile * tile);
      block = std::min(block, std::max<Index>(1, rows));
    }
    Index score_row() const noexcept { return kernel::padded_columns(keys); }
    // Floats that a thread works with: k and v packed, and scores.
    Index packed_keys() const noexcept { return kernel::packed_size(depth, keys); }
    Index slot() const noexcept {
      return (packed_keys() + kernel::packed_size(keys, width) + block * score_row() + 15) / 16 * 16;
    }
  };

  int axis(std::size_t operand, int a) const noexcept {
    return static_cast<int>(axes_[operand][static_cast<std::size_t>(a)]);
  }
  // Where a head of operand `i` of shape `shape` begins.
  Index head_at(const Shape& shape, std::size_t i, Index head) const noexcept {
    const Strides strides(shape, axes_[i]);
    Index at = 0;
    for (int a = shape.rank() - 3; a >= 0; --a) {
      const Index size = shape[axis(i, a)];
      at += head % size * strides.of[static_cast<std::size_t>(a)];
      head /= size;
    }
    return at;
  }

  void pack(const OperationRun& run, const Sizes& n, Index head, float* scratch) const noexcept {
    const TensorView &k = run.in[1], &v = run.in[2];
    const Strides ks(k.shape, axes_[1]), vs(v.shape, axes_[2]);
    const auto last = static_cast<std::size_t>(k.shape.rank() - 1);
    kernel::pack(k.f32() + head_at(k.shape, 1, head), ks.of[last], ks.of[last - 1], n.depth, n.keys, scale_, scratch);
    kernel::pack(v.f32() + head_at(v.shape, 2, head), vs.of[last - 1], vs.of[last], n.keys, n.width, 1.0f,
                 scratch + n.packed_keys());
  }

  void attend(const OperationRun& run, const Sizes& n, Index head, Index first, Index rows,
              float* scratch) const noexcept {
    const TensorView &q = run.in[0], &y = run.out[0];
    const auto row_axis = static_cast<std::size_t>(q.shape.rank() - 2);
    float* scores = scratch + n.packed_keys() + kernel::packed_size(n.keys, n.width);
    kernel::Gemm g;
    g.m = rows, g.n = n.score_row(), g.run = n.depth;  // whole vectors: aligned, and none is cut
    g.lda = Strides(q.shape, axes_[0]).of[row_axis];
    g.a = q.f32() + head_at(q.shape, 0, head) + first * g.lda;
    g.b = scratch;
    g.c = scores, g.ldc = n.score_row();
    run.kernels.gemm(g);
    if (const TensorView* mask = optional_input(run.in, 3)) add_mask(run, n, *mask, head, first, rows, scores);
    for (Index r = 0; r < rows; ++r) {
      float* row = scores + r * n.score_row();
      run.kernels.softmax(row, row, 1, n.keys, false);
    }
    g.n = n.width, g.run = n.keys;
    g.a = scores, g.lda = n.score_row();
    g.b = scratch + n.packed_keys();
    g.ldc = Strides(y.shape, axes_[3]).of[row_axis];
    g.c = y.as<float>() + head_at(y.shape, 3, head) + first * g.ldc;
    run.kernels.gemm(g);
  }

  void add_mask(const OperationRun& run, const Sizes& n, const TensorView& mask, Index head, Index first, Index rows,
                float* scores) const noexcept {
    // Its axes are the last ones of the scores; where it has size 1 it stays.
    const Shape &shape = mask.shape, own = strides_of(shape);
    const int rank = run.in[0].shape.rank(), missing = rank - shape.rank();
    const auto stride = [&](int a) { return a < missing || shape[a - missing] == 1 ? 0 : own[a - missing]; };
    const float* at = mask.f32() + first * stride(rank - 2);
    for (int a = rank - 3; a >= 0; --a) {
      const Index size = run.in[0].shape[axis(0, a)];
      at += head % size * stride(a);
      head /= size;
    }
    for (Index r = 0; r < rows; ++r, scores += n.score_row(), at += stride(rank - 2))
      run.kernels.binary(kernel::Binary::add, scores, 1, at, stride(rank - 1), scores, n.keys);
  }

  float scale_;
  std::array<std::vector<Index>, 4> axes_;  // of q, k, v and the output
};

}  // namespace offramp

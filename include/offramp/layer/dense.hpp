/// @file dense.hpp
/// Matrix products: ONNX Gemm and MatMul.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "offramp/kernel/pack.hpp"
#include "offramp/kernel/split.hpp"
#include "offramp/layer/fused.hpp"

namespace offramp {

/// A k x n matrix packed once, with an optional bias: what a dense layer is made of.
class DensePlan {
 public:
  DensePlan() = default;

  /// Element (i, j) is at weights[i * row_step + j * column_step]; bias is null or [n].
  DensePlan(Index k, Index n, const float* weights, Index row_step, Index column_step, float scale, const float* bias,
            const FusedTail& tail, bool in_bf16 = false)
      : k_(k), n_(n), tail_(tail), has_bias_(bias), in_bf16_(in_bf16) {
    if (in_bf16) {
      weights_ = Tensor(DType::bf16, {kernel::bf16_packed_size(1, k, n)});
      kernel::bf16_pack(weights, row_step, column_step, 1, k, n, scale,
                        static_cast<std::uint16_t*>(weights_.mutable_data()));
    } else {
      weights_ = Tensor(DType::f32, {kernel::packed_size(k, n)});
      kernel::pack(weights, row_step, column_step, k, n, scale, static_cast<float*>(weights_.mutable_data()));
    }
    if (bias) {
      bias_ = Tensor(DType::f32, {kernel::padded_columns(n)});
      std::memcpy(bias_.mutable_data(), bias, static_cast<std::size_t>(n) * sizeof(float));
    }
  }

  bool empty() const noexcept { return n_ == 0; }
  Index inputs() const noexcept { return k_; }
  Index outputs() const noexcept { return n_; }
  std::span<const std::byte> packed() const noexcept { return weights_.raw(); }

  static Cost cost(Index m, Index n, Index k, bool bias, bool residual, const FusedTail& tail) noexcept {
    const Index macs = m * n * k;
    return {macs, 2 * macs + m * n * Index{bias},
            2 * m * kernel::padded_columns(n) * k + m * n * (bias + residual + tail.executed)};
  }
  Cost cost(Index m, bool residual) const noexcept { return cost(m, n_, k_, has_bias_, residual, tail_); }

  /// Of m rows; none in float32.
  std::size_t scratch_bytes(Index m) const noexcept {
    return in_bf16_ ? static_cast<std::size_t>((m + 16) * k_ + 64) * sizeof(std::uint16_t) : 0;
  }
  std::string algorithm() const { return in_bf16_ ? "bf16 gemm" : "gemm"; }

  /// `in` is [m][k], `residual` null or [m][n], `out` [m][n].
  void forward(const float* in, const float* residual, float* out, Index m, const kernel::Kernels& kernels,
               ExecutorRef executor = {}, std::byte* scratch = nullptr) const noexcept {
    if (in_bf16_) {
      auto* half = reinterpret_cast<std::uint16_t*>(scratch);
      kernels.bf16->convert(in, half, m * k_);
      half[m * k_] = 0;  // an odd run reads one more, and a NaN there times 0 were a NaN
      kernel::Bf16Gemm g;
      g.m = m, g.n = n_, g.run = k_, g.a = half, g.lda = k_;
      g.b = static_cast<const std::uint16_t*>(weights_.data());
      g.bias = has_bias_ ? bias_.view().f32() : nullptr;
      g.residual = residual, g.ldr = n_, g.c = out, g.ldc = n_;
      g.activation = tail_.activation, g.alpha = tail_.alpha, g.beta = tail_.beta;
      g.columns_outside = kernel::prefer_columns_outside(m, n_, k_ / 2);
      kernel::bf16_gemm(g, kernels, executor);
      return;
    }
    product(in, weights_.view().f32(), has_bias_ ? bias_.view().f32() : nullptr, residual, out, m, n_, k_, tail_,
            kernels, executor);
  }

  static void product(const float* a, const float* packed, const float* bias, const float* residual, float* out,
                      Index m, Index n, Index k, const FusedTail& tail, const kernel::Kernels& kernels,
                      ExecutorRef executor) noexcept {
    if (m == 0 || n == 0) return;
    kernel::Gemm g;
    g.m = m, g.n = n, g.run = k;
    g.a = a, g.lda = k;
    g.b = packed;
    g.bias = bias;
    g.residual = residual, g.ldr = n;
    g.c = out, g.ldc = n;
    g.activation = tail.activation, g.alpha = tail.alpha, g.beta = tail.beta;
    g.columns_outside = kernel::prefer_columns_outside(m, n, k);
    kernel::gemm(g, kernels, executor);
  }

 private:
  Index k_ = 0, n_ = 0;
  FusedTail tail_;
  bool has_bias_ = false, in_bf16_ = false;
  Tensor weights_, bias_;
};

/// ONNX Gemm: alpha A' B' + beta C.
class GemmOperation final : public Operation {
 public:
  /// Transposed weights of at least so many floats, more than an L2 keeps, are not packed for up to so many samples:
  /// reading them is what counts, and one copy is enough.
  static constexpr Index many_weights = 1 << 20, few_samples = 16;
  /// Nor are those of few columns, as a classifier has them: along a long sum the lanes of a vector are all in use, and
  /// one row has more than one sum in flight.
  static constexpr Index few_columns = 12, long_sum = 128;

  GemmOperation(const Node& node, Index)
      : alpha_(node.real("alpha", 1)),
        beta_(node.real("beta", 1)),
        trans_a_(node.integer("transA", 0) != 0),
        trans_b_(node.integer("transB", 0) != 0),
        tail_(node) {}

  bool has_packed(std::size_t i) const noexcept override { return i == 1 && !plan_.empty(); }
  std::span<const std::byte> packed() const noexcept override { return plan_.packed(); }
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView &a = float_input(in, 0), &b = float_input(in, 1);
    require_rank(a, 2, 2, "A");
    require_rank(b, 2, 2, "B");
    const Index m = a.shape[trans_a_ ? 1 : 0], k = a.shape[trans_a_ ? 0 : 1], n = b.shape[trans_b_ ? 0 : 1];
    OFFRAMP_REQUIRE(b.shape[trans_b_ ? 1 : 0] == k, "A " + a.shape.text() + " and B " + b.shape.text() + " do not fit");
    const Shape shape{m, n};
    if (optional_input(in, 2)) {
      OFFRAMP_REQUIRE(broadcast_shape(shape, float_input(in, 2).shape) == shape,
                      "C " + in[2].shape.text() + " does not broadcast to " + shape.text());
    }
    if (optional_input(in, 3)) {
      OFFRAMP_REQUIRE(float_input(in, 3).shape == shape,
                      "residual " + in[3].shape.text() + " is not of shape " + shape.text());
    }
    set_output(out[0], DType::f32, shape);
  }
  void prepare(std::span<const TensorView> in, const PrepareOptions& options) override {
    const TensorView& b = in[1];
    const TensorView* c = optional_input(in, 2);
    const Index n = b.shape[trans_b_ ? 0 : 1], k = b.shape[trans_b_ ? 1 : 0];
    const bool row =
        c && c->data && b.data && c->count() == n && c->shape.rank() > 0 && c->shape[c->shape.rank() - 1] == n;
    late_bias_ = c && !row;
    if (!b.data) return;
    std::vector<float> bias;
    for (Index i = 0; row && i < n; ++i) bias.push_back(beta_ * c->f32()[i]);
    const bool bf16 = options.bf16 && options.kernels.bf16;
    in_place_ = trans_b_ && alpha_ == 1 && !bf16 &&
                ((n * k >= many_weights && options.batch <= few_samples) || (n <= few_columns && k >= long_sum));
    if (in_place_) {
      if (row) bias_ = Tensor::of<float>({n}, bias);
      return;
    }
    plan_ = DensePlan(k, n, b.f32(), trans_b_ ? 1 : n, trans_b_ ? k : 1, alpha_, row ? bias.data() : nullptr,
                      late_bias_ ? FusedTail() : tail_, bf16);
  }
  Cost cost(std::span<const TensorView> in, std::span<const TensorView> out) const noexcept override {
    const Index k = in[0].shape[trans_a_ ? 0 : 1];
    return DensePlan::cost(out[0].shape[0], out[0].shape[1], k, optional_input(in, 2), optional_input(in, 3), tail_);
  }
  Index executed(std::span<const TensorView> in, std::span<const TensorView> out) const noexcept override {
    return cost(in, out).executed;
  }
  std::size_t scratch_bytes(std::span<const TensorView> in, std::span<const TensorView> out,
                            Index) const noexcept override {
    std::size_t bytes = (trans_a_ ? in[0].bytes() + alignment : 0) + plan_.scratch_bytes(out[0].shape[0]);
    if (plan_.empty() && !in_place_)
      bytes += static_cast<std::size_t>(
                   kernel::packed_size(in[1].count() / std::max<Index>(1, out[0].shape[1]), out[0].shape[1])) *
               sizeof(float);
    return bytes;
  }
  std::string algorithm() const override {
    return in_place_ ? "gemm of rows" : plan_.empty() ? "gemm, packed each time" : plan_.algorithm();
  }

  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &a = run.in[0], &b = run.in[1], &y = run.out[0];
    const TensorView *c = optional_input(run.in, 2), *r = optional_input(run.in, 3);
    const Index m = y.shape[0], n = y.shape[1], k = a.shape[trans_a_ ? 0 : 1];
    const float* left = a.f32();
    auto* scratch = reinterpret_cast<float*>(run.scratch);
    if (trans_a_) {
      kernel::transpose(a.f32(), k, m, scratch);
      left = scratch;
      scratch += (a.count() + 15) / 16 * 16;
    }
    const float* residual = r && !late_bias_ ? r->f32() : nullptr;
    if (in_place_) {
      const FusedTail tail = late_bias_ ? FusedTail() : tail_;
      kernel::dot_gemm({.m = m,
                        .n = n,
                        .k = k,
                        .a = left,
                        .b = b.f32(),
                        .bias = bias_.empty() ? nullptr : bias_.view().f32(),
                        .residual = residual,
                        .ldr = n,
                        .c = y.as<float>(),
                        .ldc = n,
                        .activation = tail.activation,
                        .alpha = tail.alpha,
                        .beta = tail.beta},
                       run.kernels, run.executor);
    } else if (!plan_.empty()) {
      plan_.forward(left, residual, y.as<float>(), m, run.kernels, run.executor, reinterpret_cast<std::byte*>(scratch));
    } else {
      kernel::pack(b.f32(), trans_b_ ? 1 : n, trans_b_ ? k : 1, k, n, alpha_, scratch);
      DensePlan::product(left, scratch, nullptr, residual, y.as<float>(), m, n, k, late_bias_ ? FusedTail() : tail_,
                         run.kernels, run.executor);
    }
    if (late_bias_) {
      const BroadcastWalk walk(y.shape, {&c->shape});
      walk.each([&](Index at, const auto& offset) {
        for (Index i = 0; i < walk.inner; ++i) y.as<float>()[at + i] += beta_ * c->f32()[offset[0] + i * walk.step[0]];
      });
      if (r) run.kernels.binary(kernel::Binary::add, y.f32(), 1, r->f32(), 1, y.as<float>(), y.count());
      run.kernels.unary(tail_.activation, y.f32(), y.as<float>(), y.count(), tail_.alpha, tail_.beta);
    }
    return true;
  }

 private:
  float alpha_, beta_;
  bool trans_a_, trans_b_, late_bias_ = false;
  bool in_place_ = false;  // the weights are read where the file's tensor has them
  FusedTail tail_;
  DensePlan plan_;
  Tensor bias_;
};

/// ONNX MatMul, as numpy.matmul; a bias of the last axis may have been fused in as input 2, a residual as input 3.
class MatMulOperation final : public Operation {
 public:
  MatMulOperation(const Node& node, Index) : tail_(node) {}

  InputUse use(std::size_t i) const noexcept override { return i == 2 ? InputUse::parameter : InputUse::data; }
  bool has_packed(std::size_t i) const noexcept override { return i == 1 && !plan_.empty(); }
  std::span<const std::byte> packed() const noexcept override { return plan_.packed(); }
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView &a = float_input(in, 0), &b = float_input(in, 1);
    OFFRAMP_REQUIRE(a.shape.rank() > 0 && b.shape.rank() > 0, "operands must have axes");
    const Layout l(a.shape, b.shape);
    OFFRAMP_REQUIRE(l.k == l.k_right, "operands " + a.shape.text() + " and " + b.shape.text() + " do not fit");
    Shape s = broadcast_shape(l.batch_a, l.batch_b);
    if (a.shape.rank() > 1) s.push_back(l.m);
    if (b.shape.rank() > 1) s.push_back(l.n);
    if (optional_input(in, 2))
      OFFRAMP_REQUIRE(float_input(in, 2).count() == l.n, "bias " + in[2].shape.text() + " does not fit " + s.text());
    if (optional_input(in, 3))
      OFFRAMP_REQUIRE(float_input(in, 3).shape == s, "residual " + in[3].shape.text() + " is not of shape " + s.text());
    set_output(out[0], DType::f32, s);
  }
  void prepare(std::span<const TensorView> in, const PrepareOptions& options) override {
    const TensorView& b = in[1];
    const TensorView* bias = optional_input(in, 2);
    if (!b.data || b.shape.rank() > 2) {
      OFFRAMP_REQUIRE(!bias, "a bias was fused into a product of two activations");
      return;
    }
    const Index k = b.shape[0], n = b.shape.rank() == 2 ? b.shape[1] : 1;
    plan_ =
        DensePlan(k, n, b.f32(), n, 1, 1.0f, bias ? bias->f32() : nullptr, tail_, options.bf16 && options.kernels.bf16);
  }
  Cost cost(std::span<const TensorView> in, std::span<const TensorView> out) const noexcept override {
    const Layout l(in[0].shape, in[1].shape);
    const Index rows = l.n > 0 ? out[0].count() / l.n : 0;
    return DensePlan::cost(rows, l.n, l.k, optional_input(in, 2), optional_input(in, 3), tail_);
  }
  Index executed(std::span<const TensorView> in, std::span<const TensorView> out) const noexcept override {
    return cost(in, out).executed;
  }
  std::size_t scratch_bytes(std::span<const TensorView> in, std::span<const TensorView> out,
                            Index) const noexcept override {
    const Layout l(in[0].shape, in[1].shape);
    if (!plan_.empty()) return plan_.scratch_bytes(l.n > 0 ? out[0].count() / l.n : 0);
    return static_cast<std::size_t>(kernel::packed_size(l.k, l.n)) * sizeof(float);
  }
  std::string algorithm() const override { return plan_.empty() ? "gemm, packed each time" : plan_.algorithm(); }

  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &a = run.in[0], &b = run.in[1], &y = run.out[0];
    const TensorView* r = optional_input(run.in, 3);
    const Layout l(a.shape, b.shape);
    if (y.count() == 0) return true;
    if (!plan_.empty()) {
      plan_.forward(a.f32(), r ? r->f32() : nullptr, y.as<float>(), y.count() / l.n, run.kernels, run.executor,
                    run.scratch);
      return true;
    }
    auto* packed = reinterpret_cast<float*>(run.scratch);
    Shape batch;
    for (int i = 0; i < std::max(l.batch_a.rank(), l.batch_b.rank()); ++i) {
      const int ia = i - std::max(0, l.batch_b.rank() - l.batch_a.rank()),
                ib = i - std::max(0, l.batch_a.rank() - l.batch_b.rank());
      const Index da = ia < 0 ? 1 : l.batch_a[ia], db = ib < 0 ? 1 : l.batch_b[ib];
      batch.push_back(da == 1 ? db : da);
    }
    const BroadcastWalk walk(batch, {&l.batch_a, &l.batch_b});
    Index last = -1;
    walk.each([&](Index at, const auto& offset) {
      for (Index i = 0; i < walk.inner; ++i) {
        const Index pa = offset[0] + i * walk.step[0], pb = offset[1] + i * walk.step[1];
        if (pb != last) kernel::pack(b.f32() + pb * l.k * l.n, l.n, 1, l.k, l.n, 1.0f, packed);
        last = pb;
        const Index to = (at + i) * l.m * l.n;
        DensePlan::product(a.f32() + pa * l.m * l.k, packed, nullptr, r ? r->f32() + to : nullptr, y.as<float>() + to,
                           l.m, l.n, l.k, tail_, run.kernels, run.executor);
      }
    });
    return true;
  }

 private:
  struct Layout {
    Index m = 1, n = 1, k, k_right;
    Shape batch_a, batch_b;
    Layout(const Shape& a, const Shape& b) noexcept : k(a[a.rank() - 1]), k_right(b[std::max(0, b.rank() - 2)]) {
      if (a.rank() > 1) m = a[a.rank() - 2];
      if (b.rank() > 1) n = b[b.rank() - 1];
      for (int i = 0; i < a.rank() - 2; ++i) batch_a.push_back(a[i]);
      for (int i = 0; i < b.rank() - 2; ++i) batch_b.push_back(b[i]);
    }
  };

  FusedTail tail_;
  DensePlan plan_;
};

}  // namespace offramp

/// @file winograd_rows.hpp
/// Convolution 3 x 3 with stride 1 of a few channels, by Winograd's minimal filtering down the columns alone.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "offramp/core/executor.hpp"
#include "offramp/core/tensor.hpp"
#include "offramp/kernel/isa.hpp"
#include "offramp/kernel/kernels.hpp"
#include "offramp/kernel/split.hpp"
#include "offramp/layer/fused.hpp"
#include "offramp/layer/window.hpp"
#include "offramp/layer/winograd.hpp"

namespace offramp {

/// F(4 x 1, 3 x 3): a strip of four rows of outputs takes six products of rows instead of twelve (F(4, 3) of Lavin and
/// Gray, CVPR 2016, along one axis). With the three channels of an image a sum over channels is too short for the
/// products of whole tiles, whose transformations cost more than they save; here the input's is a few vectors a row,
/// and the output's starts from registers. Reads channels one after the other, as ONNX has them, where they lie: the
/// image is not copied.
class WinogradRowsPlan {
 public:
  static constexpr Index points = 6, rows = 4;

  WinogradRowsPlan() = default;

  static bool fits(const Window& w, Index in_channels, Index group) noexcept {
    return WinogradPlan::fits(w, group) && in_channels <= 4;
  }

  /// `weights` is [out_channels][in_channels][3][3]; outside of the image each channel has its value of `padding`, or
  /// zeros where that is empty.
  WinogradRowsPlan(const Window& w, Index in_channels, Index out_channels, const float* weights,
                   std::span<const float> padding)
      : w_(w), in_channels_(in_channels), out_channels_(out_channels) {
    pack(weights);
    outside_ = Tensor(DType::f32, {in_channels, w.in[2]});
    pad_.assign(static_cast<std::size_t>(in_channels), 0.0f);
    for (Index c = 0; c < in_channels && !padding.empty(); ++c) {
      pad_[static_cast<std::size_t>(c)] = padding[static_cast<std::size_t>(c)];
      std::fill_n(static_cast<float*>(outside_.mutable_data()) + c * w.in[2], w.in[2],
                  padding[static_cast<std::size_t>(c)]);
    }
  }

  std::span<const std::byte> packed() const noexcept { return weights_.raw(); }

  /// Cycles that a batch is expected to take, measured: products, and of a vector the transformations.
  static double cycles(const Window& w, Index in_channels, Index out_channels, Index batch, Index lanes) noexcept {
    constexpr double share = 0.9, input = 20, output = 12;
    const Index width = (w.out[2] + 15) / 16 * 16, strips = batch * strips_of(w);
    const double products =
        static_cast<double>(width * points * 3 * in_channels * kernel::padded_columns(out_channels)) /
        (share * multiply_adds_per_cycle(lanes));
    const auto vectors = [&](Index n) { return static_cast<double>((n + lanes - 1) / lanes); };
    return static_cast<double>(strips) * (products + output * static_cast<double>(w.out[2]) * vectors(out_channels) +
                                          input * static_cast<double>(in_channels) * vectors(w.in[2]));
  }

  /// FLOPs of products and transformations, without bias and tail.
  Index executed(Index batch) const noexcept {
    const Index products = 2 * points * 3 * in_channels_ * kernel::padded_columns(out_channels_);
    return batch * strips_of(w_) * (w_.out[2] * (products + 12 * out_channels_) + 20 * w_.in[2] * in_channels_);
  }

  std::size_t scratch_bytes(Index threads) const noexcept {
    return static_cast<std::size_t>(threads * points * in_channels_ * line()) * sizeof(float);
  }

  /// From [batch][channels][h][w] to [batch][h][w][channels]; `bias` and `residual` may be null.
  void forward(const float* in, const float* bias, const float* residual, float* out, Index batch,
               const FusedTail& tail, std::byte* scratch, const kernel::Kernels& kernels,
               ExecutorRef executor) const noexcept {
    const Index each = strips_of(w_), strips = batch * each;
    const bool pays = batch * w_.out_count() * 9 * in_channels_ * out_channels_ >= kernel::least_parallel_macs;
    const Index parts = pays ? std::min(executor.threads(), strips) : std::min<Index>(1, strips);
    executor.each(parts, [&](Index i) {
      float* columns = reinterpret_cast<float*>(scratch) + i * points * in_channels_ * line();
      pad(columns);
      const kernel::Range some = kernel::part_of(strips, 1, parts, i);
      for (Index s = some.first; s < some.last; ++s) {
        const Index y = s % each * rows, count = std::min(rows, w_.out[1] - y), row = w_.out[2] * out_channels_,
                    at = (s / each * w_.out[1] + y) * row;
        transform(in + s / each * in_channels_ * w_.in_count(), y - w_.begin[1], columns, kernels);
        kernel::WinogradRows r;
        r.channels = in_channels_;
        r.columns = columns, r.row = in_channels_ * line(), r.channel = line();
        r.weights = weights_.view().f32(), r.bias = bias;
        r.out = out + at, r.out_row = row, r.out_channels = out_channels_;
        r.width = w_.out[2], r.rows = count;
        const bool inside =
            !residual && (tail.activation <= kernel::Unary::relu || tail.activation == kernel::Unary::clip);
        if (inside) r.activation = tail.activation, r.alpha = tail.alpha, r.beta = tail.beta;
        kernels.winograd_rows(r);
        if (inside) continue;
        if (residual) kernels.binary(kernel::Binary::add, r.out, 1, residual + at, 1, r.out, count * row);
        kernels.unary(tail.activation, r.out, r.out, count * row, tail.alpha, tail.beta);
      }
    });
  }

 private:
  static Index strips_of(const Window& w) noexcept { return (w.out[1] + rows - 1) / rows; }
  // Floats of a row of one channel with its padding: the kernel reads whole vectors of 16 pixels and two more.
  Index line() const noexcept { return (std::max(w_.padded()[2], (w_.out[2] + 15) / 16 * 16 + 2) + 15) / 16 * 16; }

  // B^T d of columns outside of the image: of equal values only the second of its sums is not zero. What is read behind
  // them goes to outputs that nobody keeps.
  void pad(float* columns) const noexcept {
    for (Index i = 0; i < points; ++i) {
      for (Index c = 0; c < in_channels_; ++c, columns += line()) {
        const float v = i == 1 ? -6 * pad_[static_cast<std::size_t>(c)] : 0;
        std::fill_n(columns, w_.begin[2], v);
        std::fill_n(columns + w_.begin[2] + w_.in[2], line() - w_.begin[2] - w_.in[2], v);
      }
    }
  }
  // B^T d of six rows from `top` on.
  void transform(const float* image, Index top, float* columns, const kernel::Kernels& kernels) const noexcept {
    for (Index c = 0; c < in_channels_; ++c) {
      const float* from[points];
      for (Index i = 0; i < points; ++i) {
        const bool inside = top + i >= 0 && top + i < w_.in[1];
        from[i] = inside ? image + (c * w_.in[1] + top + i) * w_.in[2] : outside_.view().f32() + c * w_.in[2];
      }
      kernels.winograd_columns(from, columns + c * line() + w_.begin[2], in_channels_ * line(), w_.in[2]);
    }
  }

  // G g of every column of a filter, in double: blocks of 16 output channels, each [6][channels][3][16].
  void pack(const float* weights) {
    constexpr Index block = kernel::column_block;
    weights_ = Tensor(DType::f32, {kernel::padded_columns(out_channels_), points, in_channels_, 3});
    auto* to = static_cast<float*>(weights_.mutable_data());
    std::fill_n(to, weights_.count(), 0.0f);
    for (Index o = 0; o < out_channels_; ++o) {
      for (Index c = 0; c < in_channels_; ++c) {
        for (Index x = 0; x < 3; ++x) {
          const float* w = weights + (o * in_channels_ + c) * 9 + x;
          for (Index i = 0; i < points; ++i) {
            double v = 0;
            for (Index y = 0; y < 3; ++y) v += winograd_filter_4[i][y] * static_cast<double>(w[3 * y]);
            to[(((o / block * points + i) * in_channels_ + c) * 3 + x) * block + o % block] = static_cast<float>(v);
          }
        }
      }
    }
  }

  Window w_;
  Index in_channels_ = 0, out_channels_ = 0;
  Tensor weights_, outside_;  // `outside_`: a row of every channel
  std::vector<float> pad_;    // of every channel
};

}  // namespace offramp

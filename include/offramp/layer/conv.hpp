/// @file conv.hpp
/// Convolution and its transpose, over one to three spatial axes.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "offramp/kernel/pack.hpp"
#include "offramp/layer/fused.hpp"
#include "offramp/layer/window.hpp"
#include "offramp/layer/winograd.hpp"
#include "offramp/layer/winograd_rows.hpp"
#include "offramp/layer/winograd_strided.hpp"

namespace offramp {

/// Convolution with its weights packed for one input size; shared by the run-time graph and by networks as types.
/// Input and output are channels last. Chooses between the depthwise kernel, Winograd's algorithm and the indirect
/// matrix product, in which the rows of the left side are read where the window lies in the input.
class ConvPlan {
 public:
  ConvPlan() = default;

  /// Whether a convolution reads a copy of its image with the padding, which may then hold any numbers.
  static bool copies_padding(const Window& w, Index in_channels, Index out_channels, Index group) noexcept {
    return group == 1 && in_channels <= 4 && in_channels * out_channels > 1 && w.dilation[2] == 1 && w.kernel[2] > 1 &&
           w.kernel[0] == 1;
  }

  /// `weights` is [out_channels][in_channels / group][kernel...], `bias` null or [out_channels]. With `planes` the
  /// input has its channels first. `padding` holds what stands outside of the image, one a channel, where
  /// `copies_padding`; empty: zeros.
  OFFRAMP_COLD ConvPlan(const Window& window, Index in_channels, Index out_channels, Index group, const float* weights,
                        const float* bias, const FusedTail& tail, const PrepareOptions& options, bool planes = false,
                        std::span<const float> padding = {})
      : w_(window),
        in_channels_(in_channels),
        out_channels_(out_channels),
        group_(group),
        tail_(tail),
        has_bias_(bias),
        planes_(planes) {
    OFFRAMP_REQUIRE(padding.empty() || (copies_padding(window, in_channels, out_channels, group) &&
                                        static_cast<Index>(padding.size()) == in_channels),
                    "this convolution cannot be padded with " + std::to_string(padding.size()) + " numbers");
    if (!padding.empty()) {
      padding_.resize(static_cast<std::size_t>(w_.padded()[2] * in_channels));
      for (std::size_t i = 0; i < padding_.size(); ++i) padding_[i] = padding[i % padding.size()];
    }
    OFFRAMP_REQUIRE(group > 0 && in_channels % group == 0 && out_channels % group == 0,
                    "channels " + std::to_string(in_channels) + " and " + std::to_string(out_channels) +
                        " are not divisible into " + std::to_string(group) + " groups");
    const Index taps = w_.taps(), in_group = in_channels / group, out_group = out_channels / group;
    w_.check_sizes(in_channels);
    if (group == in_channels && group == out_channels && w_.in[0] == 1 && w_.kernel[0] == 1 && w_.begin[0] == 0) {
      kind_ = Kind::depthwise;
      weights_ = Tensor(DType::f32, {taps, out_channels});
      kernel::transpose(weights, out_channels, taps, floats(weights_));
      if (bias) {
        bias_ = Tensor(DType::f32, {out_channels});
        std::memcpy(bias_.mutable_data(), bias, bias_.bytes());
      }
      return;
    }
    if (bias) {
      bias_ = Tensor(DType::f32, {group, kernel::padded_columns(out_group)});
      for (Index g = 0; g < group; ++g) {
        std::memcpy(floats(bias_) + g * kernel::padded_columns(out_group), bias + g * out_group,
                    static_cast<std::size_t>(out_group) * sizeof(float));
      }
    }
    const ConvMethod method = choose(options);
    if (method.columns) {
      kind_ = Kind::winograd_rows;
      winograd_rows_ = WinogradRowsPlan(w_, in_channels, out_channels, weights, padding);
      return;
    }
    if (method.m > 0 && is_strided()) {
      kind_ = Kind::winograd_strided;
      winograd_strided_ = WinogradStridedPlan(w_, in_channels, out_channels, method.m, weights);
      return;
    }
    if (method.m > 0) {
      kind_ = Kind::winograd;
      winograd_ = WinogradPlan(w_, in_channels, out_channels, method, weights, options.kernels.lanes);
      return;
    }
    if (method.halves) {
      plan_bf16(weights);
      return;
    }
    if (w_.is_pointwise()) {
      kind_ = Kind::pointwise;
    } else if (copies_padding(w_, in_channels, out_channels, group)) {
      kind_ = Kind::rows;  // a row of the window is one run of memory, in a copy of the image with its padding
    }
    taps_ = kind_ == Kind::rows ? taps / w_.kernel[2] : taps;
    run_ = kind_ == Kind::rows ? w_.kernel[2] * in_group : in_group;
    const Index k = taps_ * run_;
    packed_ = kernel::packed_size(k, out_group);
    weights_ = Tensor(DType::f32, {group, packed_});
    std::vector<float> columns(static_cast<std::size_t>(k * out_group));  // [tap][channel][out]
    for (Index g = 0; g < group; ++g) {
      for (Index o = 0; o < out_group; ++o) {
        const float* from = weights + (g * out_group + o) * in_group * taps;
        for (Index c = 0; c < in_group; ++c) {
          for (Index t = 0; t < taps; ++t)
            columns[static_cast<std::size_t>((t * in_group + c) * out_group + o)] = from[c * taps + t];
        }
      }
      kernel::pack(columns.data(), out_group, 1, k, out_group, 1.0f, floats(weights_) + g * packed_);
    }
    if (kind_ == Kind::indirect) offsets_ = w_.offsets(in_channels, false);
    zeros_ = Tensor(DType::f32, {run_ + 16});
  }

  const Window& window() const noexcept { return w_; }

  Cost cost(Index batch, bool residual) const noexcept {
    const Index outputs = batch * w_.out_count() * out_channels_;
    const Index macs = outputs * w_.taps() * (in_channels_ / group_);
    const Index out_group = out_channels_ / group_;
    const Index executed = kind_ == Kind::depthwise       ? 2 * macs
                           : kind_ == Kind::winograd      ? winograd_.executed(batch)
                           : kind_ == Kind::winograd_rows ? winograd_rows_.executed(batch)
                           : kind_ == Kind::winograd_strided
                               ? winograd_strided_.executed(batch)
                               : 2 * (macs / out_group * kernel::padded_columns(out_group));
    return {macs, 2 * macs + outputs * Index{has_bias_}, executed + outputs * (has_bias_ + residual + tail_.executed)};
  }

  /// Of what is executed, the transformations of Winograd's tiles.
  Index transformed(Index batch) const noexcept {
    return kind_ == Kind::winograd           ? winograd_.transformed(batch)
           : kind_ == Kind::winograd_strided ? winograd_strided_.transformed(batch)
                                             : 0;
  }

  std::size_t scratch_bytes(Index batch, Index threads = 1) const noexcept {
    return turned_at(batch, threads) + floats_for(turns() ? batch * image_size() : 0) +
           floats_for(pools_after() ? batch * w_.out_count() * out_channels_ : 0);
  }

  std::string algorithm() const {
    switch (kind_) {
      case Kind::depthwise:
        return "depthwise";
      case Kind::winograd:
        return winograd_.text();
      case Kind::winograd_rows:
        return "winograd F(4x1,3x3)";
      case Kind::winograd_strided:
        return winograd_strided_.text();
      case Kind::bf16:
        return spatial_ ? "bf16 row gemm" : "bf16 gemm";
      case Kind::pointwise:
        return "gemm";
      case Kind::rows:
        return "row gemm";
      case Kind::indirect:
        return "indirect gemm";
    }
    return {};
  }

  std::span<const std::byte> packed() const noexcept {
    return kind_ == Kind::winograd           ? winograd_.packed()
           : kind_ == Kind::winograd_rows    ? winograd_rows_.packed()
           : kind_ == Kind::winograd_strided ? winograd_strided_.packed()
                                             : weights_.raw();
  }

  /// `in` is [batch][spatial...][channels], or with `planes` [batch][channels][spatial...], `residual` (or null; it is
  /// in front of a pooling) and `out` are [batch][spatial...][channels]; `next` as in `OperationRun`.
  void forward(const float* in, const float* residual, float* out, Index batch, std::byte* scratch,
               const kernel::Kernels& kernels, ExecutorRef executor = {},
               std::span<const std::byte> next = {}) const noexcept {
    if (!pools_after()) return convolve(in, residual, out, batch, scratch, kernels, executor, next);
    const Index size = w_.out_count() * out_channels_;
    auto* whole =
        reinterpret_cast<float*>(scratch + scratch_bytes(batch, executor.threads()) - floats_for(batch * size));
    convolve(in, residual, whole, batch, scratch, kernels, executor, next);
    kernel::Pool2d p;
    p.maximum = tail_.pooling == kernel::Pooling::maximum;
    p.channels = out_channels_, p.in_h = w_.out[1], p.in_w = w_.out[2], p.out_h = w_.out[1] / 2,
    p.out_w = w_.out[2] / 2;
    p.kernel_h = p.kernel_w = p.stride_h = p.stride_w = 2;
    executor.each(batch, [&](Index i) {
      kernel::Pool2d one = p;
      one.in = whole + i * size, one.out = out + i * p.out_h * p.out_w * out_channels_;
      kernels.pool2d(one);
    });
  }

 private:
  enum class Kind { indirect, pointwise, rows, depthwise, winograd, winograd_rows, winograd_strided, bf16 };

  void convolve(const float* in, const float* residual, float* out, Index batch, std::byte* scratch,
                const kernel::Kernels& kernels, ExecutorRef executor, std::span<const std::byte> next) const noexcept {
    if (turns()) {
      auto* turned = reinterpret_cast<float*>(scratch + turned_at(batch, executor.threads()));
      const Index rows = planes_ ? in_channels_ : w_.in_count(), columns = planes_ ? w_.in_count() : in_channels_;
      for (Index i = 0; i < batch; ++i)
        kernel::transpose(in + i * image_size(), rows, columns, turned + i * image_size());
      in = turned;
    }
    const float* bias = has_bias_ ? bias_.view().f32() : nullptr;
    if (kind_ == Kind::winograd)
      return winograd_.forward(in, bias, residual, out, batch, tail_, scratch, kernels, executor, next);
    if (kind_ == Kind::winograd_strided)
      return winograd_strided_.forward(in, bias, residual, out, batch, tail_, scratch, kernels, executor, next);
    for (std::size_t i = 0; i < next.size(); i += 64) __builtin_prefetch(next.data() + i, 0, 2);
    if (kind_ == Kind::depthwise) return depthwise(in, residual, out, batch, kernels, executor);
    if (kind_ == Kind::winograd_rows)
      return winograd_rows_.forward(in, bias, residual, out, batch, tail_, scratch, kernels, executor);
    if (kind_ == Kind::bf16) return bf16(in, residual, out, batch, scratch, kernels, executor);
    const Index pixels = w_.out_count(), out_group = out_channels_ / group_;
    kernel::Gemm g;
    g.n = out_group;
    g.taps = taps_;
    g.run = run_;
    g.zeros = zeros_.view().f32();
    g.ldc = g.ldr = out_channels_;
    g.activation = tail_.activation;
    g.alpha = tail_.alpha;
    g.beta = tail_.beta;
    if (kind_ == Kind::rows) return rows(g, in, residual, out, batch, scratch, kernels, executor);
    const bool joined = kind_ == Kind::pointwise;  // the samples of a batch are one long matrix
    g.m = joined ? batch * pixels : pixels;
    g.columns_outside = kernel::prefer_columns_outside(g.m, out_group, taps_ * run_);
    if (!joined) g.offsets = offsets_.data();
    for (Index image = 0; image < (joined ? 1 : batch); ++image) {
      const float* x = in + image * image_size();
      kernel::Gemm one = g;
      for (Index group = 0; group < group_; ++group) {
        one.a = x + group * (in_channels_ / group_);
        one.lda = in_channels_;
        one.b = weights_.view().f32() + group * packed_;
        one.bias = bias ? bias + group * kernel::padded_columns(out_group) : nullptr;
        one.residual = residual ? residual + image * pixels * out_channels_ + group * out_group : nullptr;
        one.c = out + image * pixels * out_channels_ + group * out_group;
        kernel::gemm(one, kernels, executor);
      }
    }
  }

  // Whether the input's channels stand where this kind does not read them.
  bool turns() const noexcept {
    if (kind_ == Kind::rows) return false;  // copies its input anyway
    return planes_ != (kind_ == Kind::winograd_rows);
  }
  // Whether its pooling is a step of its own; Winograd's tiles are pooled where they are written.
  bool pools_after() const noexcept { return tail_.pooling != kernel::Pooling::none && kind_ != Kind::winograd; }
  Index image_size() const noexcept { return w_.in_count() * in_channels_; }
  // Scratch for so many numbers, a multiple of a cache line.
  static std::size_t floats_for(Index n) noexcept {
    return (static_cast<std::size_t>(n) * sizeof(float) + alignment - 1) / alignment * alignment;
  }
  // Where in the scratch memory the turned input begins, behind what the kernels take: at a multiple of a cache line.
  std::size_t turned_at(Index batch, Index threads) const noexcept {
    std::size_t bytes = 0;
    if (kind_ == Kind::winograd) {
      bytes = winograd_.scratch_bytes(batch, threads);
    } else if (kind_ == Kind::winograd_rows) {
      bytes = winograd_rows_.scratch_bytes(threads);
    } else if (kind_ == Kind::winograd_strided) {
      bytes = winograd_strided_.scratch_bytes(batch, threads);
    } else if (kind_ == Kind::bf16) {
      const Index pixels = spatial_ ? w_.padded_count() + 16 * w_.stride[2] : batch * w_.in_count() + 16;
      bytes = static_cast<std::size_t>(pixels * in_channels_ + 64) * sizeof(std::uint16_t);
    } else if (kind_ == Kind::rows) {
      bytes = static_cast<std::size_t>(w_.padded_count() * in_channels_ + 64) * sizeof(float);
    }
    return (bytes + alignment - 1) / alignment * alignment;
  }

  void plan_bf16(const float* weights) {
    kind_ = Kind::bf16;
    spatial_ = !w_.is_pointwise();
    const Index taps = w_.taps();
    taps_ = spatial_ ? taps / w_.kernel[2] : 1;
    run_ = spatial_ ? w_.kernel[2] * in_channels_ : in_channels_;
    std::vector<float> columns(static_cast<std::size_t>(taps * in_channels_ * out_channels_));
    for (Index o = 0; o < out_channels_; ++o) {
      for (Index c = 0; c < in_channels_; ++c) {
        for (Index t = 0; t < taps; ++t)
          columns[static_cast<std::size_t>((t * in_channels_ + c) * out_channels_ + o)] =
              weights[(o * in_channels_ + c) * taps + t];
      }
    }
    weights_ = Tensor(DType::bf16, {kernel::bf16_packed_size(taps_, run_, out_channels_)});
    kernel::bf16_pack(columns.data(), out_channels_, 1, taps_, run_, out_channels_, 1.0f,
                      static_cast<std::uint16_t*>(weights_.mutable_data()));
    if (spatial_) offsets_ = w_.offsets(in_channels_, true);
  }
  void bf16(const float* in, const float* residual, float* out, Index batch, std::byte* scratch,
            const kernel::Kernels& kernels, ExecutorRef executor) const noexcept {
    auto* half = reinterpret_cast<std::uint16_t*>(scratch);
    const Index pixels = w_.out_count();
    kernel::Bf16Gemm g;
    g.n = out_channels_, g.taps = taps_, g.run = run_;
    g.a = half, g.lda = in_channels_;
    g.b = static_cast<const std::uint16_t*>(weights_.data());
    g.bias = has_bias_ ? bias_.view().f32() : nullptr;
    g.ldc = g.ldr = out_channels_;
    g.activation = tail_.activation, g.alpha = tail_.alpha, g.beta = tail_.beta;
    g.m = spatial_ ? pixels : batch * pixels;
    g.columns_outside = kernel::prefer_columns_outside(g.m, out_channels_, taps_ * run_ / 2);
    if (spatial_) g.offsets = offsets_.data();
    for (Index image = 0; image < (spatial_ ? batch : 1); ++image) {
      if (spatial_) {
        padded_halves(in + image * image_size(), half, kernels);
      } else {
        kernels.bf16->convert(in, half, batch * pixels * in_channels_);
        half[batch * pixels * in_channels_] = 0;  // an odd run reads one more, and a NaN there times 0 were a NaN
      }
      g.residual = residual ? residual + image * pixels * out_channels_ : nullptr;
      g.c = out + image * pixels * out_channels_;
      kernel::bf16_gemm(g, kernels, executor);
    }
  }
  // The image with its padding, of which only the border is zeroed.
  void padded_halves(const float* in, std::uint16_t* out, const kernel::Kernels& kernels) const noexcept {
    const std::array<Index, 3> size = w_.padded();
    const Index own = w_.in[2] * in_channels_;
    std::uint16_t* filled = out;
    for (Index d = 0; d < w_.in[0]; ++d) {
      for (Index h = 0; h < w_.in[1]; ++h) {
        std::uint16_t* to =
            out + (((d + w_.begin[0]) * size[1] + h + w_.begin[1]) * size[2] + w_.begin[2]) * in_channels_;
        std::fill(filled, to, std::uint16_t{0});
        kernels.bf16->convert(in, to, own);
        filled = to + own;
        in += own;
      }
    }
    std::fill(filled, out + w_.padded_count() * in_channels_ + 1, std::uint16_t{0});  // one more: see above
  }

  // Of the two kinds of tiles that Winograd's algorithm has.
  bool is_strided() const noexcept { return w_.stride[1] == 2; }

  // Whether it can be done so.
  bool allows(const ConvMethod& method, const PrepareOptions& options) const noexcept {
    const bool halves = options.bf16 && options.kernels.bf16 && group_ == 1 && padding_.empty();
    if (method.halves && (!halves || method.m == 6 || method.plain_weights)) return false;
    if (method.m == 0)
      return !method.plain_weights && !method.columns && (!method.halves || w_.dilation[2] == 1 || w_.is_pointwise());
    if ((method.m != 2 && method.m != 4 && method.m != 6) || method.m > options.kernels.winograd_tile) return false;
    if (method.plain_weights && (method.m != 4 || !options.kernels.winograd_products)) return false;
    if (method.columns) {
      return method.m == 4 && !method.halves && !method.plain_weights && method.m <= options.winograd_tile &&
             WinogradRowsPlan::fits(w_, in_channels_, group_);
    }
    if (method.m > options.winograd_tile) return false;
    if (is_strided())
      return method.m <= 4 && !method.halves && !method.plain_weights &&
             WinogradStridedPlan::fits(w_, in_channels_, out_channels_, group_);
    return WinogradPlan::fits(w_, group_) && in_channels_ > 4 && out_channels_ >= 4;
  }

  // What was asked for, else what the cost model expects to be fastest; where tiles multiply bfloat16 many times as
  // fast as float32, those.
  OFFRAMP_COLD ConvMethod choose(const PrepareOptions& options) const noexcept {
    if (options.conv_method && allows(*options.conv_method, options)) return *options.conv_method;
    if (allows({0, true}, options) && options.kernels.bf16->has_tiles) return {0, true};
    ConvMethod best;
    double least = cycles(best, options);
    for (const ConvMethod& method : all_conv_methods) {
      if (!allows(method, options) || (method.plain_weights && !WinogradPlan::has_few_tiles(w_, options.batch)))
        continue;
      if (const double cycles = this->cycles(method, options); cycles < least) least = cycles, best = method;
    }
    return best;
  }
  double cycles(const ConvMethod& method, const PrepareOptions& options) const noexcept {
    const Index lanes = options.kernels.lanes;
    if (method.columns)
      return WinogradRowsPlan::cycles(w_, in_channels_, out_channels_, options.batch, lanes) /
             static_cast<double>(options.threads);
    if (method.m > 0 && is_strided())
      return WinogradStridedPlan::cycles(w_, in_channels_, out_channels_, method.m, options.batch, lanes,
                                         options.threads);
    if (method.m > 0)
      return WinogradPlan::cycles(w_, in_channels_, out_channels_, method, options.batch, lanes, options.threads);
    const double weights = static_cast<double>(w_.taps() * in_channels_ * kernel::padded_columns(out_channels_)),
                 rate = method.halves ? bf16_multiply_adds_per_cycle() : multiply_adds_per_cycle(lanes),
                 products = static_cast<double>(options.batch * w_.out_count()) * weights;
    return kernel::cycles_with_weights(products / (kernel::product_share * rate * static_cast<double>(options.threads)),
                                       (method.halves ? 2 : 4) * weights);
  }

  static float* floats(Tensor& t) noexcept { return static_cast<float*>(t.mutable_data()); }

  const float* padded(const float* in, float* out, const kernel::Kernels& kernels,
                      ExecutorRef executor) const noexcept {
    const std::array<Index, 3> size = w_.padded();
    const Index row = size[2] * in_channels_, inner = w_.in[2] * in_channels_, before = w_.begin[2] * in_channels_;
    const Index rows = size[0] * size[1];
    const auto bytes = rows * row * static_cast<Index>(sizeof(float));
    kernel::each_range(kernel::copy_pays(bytes) ? executor : ExecutorRef(), rows, 1, [&](kernel::Range some) {
      for (Index r = some.first; r < some.last; ++r) {
        const Index d = r / size[1] - w_.begin[0], h = r % size[1] - w_.begin[1];
        float* to = out + r * row;
        if (d < 0 || d >= w_.in[0] || h < 0 || h >= w_.in[1]) {
          pad(to, row);
          continue;
        }
        pad(to, before);
        const Index line = d * w_.in[1] + h;
        if (planes_) {
          kernels.interleave(in + line * w_.in[2], w_.in_count(), in_channels_, to + before, w_.in[2]);
        } else {
          std::memcpy(to + before, in + line * inner, static_cast<std::size_t>(inner) * sizeof(float));
        }
        pad(to + before + inner, row - before - inner);
      }
    });
    return out;
  }

  // Whole pixels, at most a row of them.
  void pad(float* to, Index n) const noexcept {
    if (padding_.empty()) {
      std::fill_n(to, n, 0.0f);
    } else {
      std::copy_n(padding_.data(), n, to);
    }
  }

  // A row of outputs after the other: their windows lie at equal steps in the padded image.
  void rows(kernel::Gemm g, const float* in, const float* residual, float* out, Index batch, std::byte* scratch,
            const kernel::Kernels& kernels, ExecutorRef executor) const noexcept {
    const Index line = w_.padded()[2] * in_channels_, plane = w_.padded()[1] * line;
    g.m = w_.out[2];
    g.lda = w_.stride[2] * in_channels_, g.tap_step = w_.dilation[1] * line;
    g.b = weights_.view().f32();
    g.bias = has_bias_ ? bias_.view().f32() : nullptr;
    const Index count = w_.out[0] * w_.out[1], length = g.m * out_channels_;
    const bool pays = count * length * taps_ * run_ >= kernel::least_parallel_macs;
    for (Index image = 0; image < batch; ++image) {
      const float* x = padded(in + image * image_size(), reinterpret_cast<float*>(scratch), kernels, executor);
      kernel::each_range(pays ? executor : ExecutorRef(), count, 1, [&](kernel::Range some) {
        kernel::Gemm one = g;
        for (Index r = some.first; r < some.last; ++r) {
          const Index at = (image * count + r) * length;
          one.a = x + r / w_.out[1] * w_.stride[0] * plane + r % w_.out[1] * w_.stride[1] * line;
          one.residual = residual ? residual + at : nullptr;
          one.c = out + at;
          kernels.gemm(one);
        }
      });
    }
  }

  void depthwise(const float* in, const float* residual, float* out, Index batch, const kernel::Kernels& kernels,
                 ExecutorRef executor) const noexcept {
    kernel::Depthwise d;
    d.channels = in_channels_;
    d.in_h = w_.in[1], d.in_w = w_.in[2], d.out_h = w_.out[1], d.out_w = w_.out[2];
    d.kernel_h = w_.kernel[1], d.kernel_w = w_.kernel[2];
    d.stride_h = w_.stride[1], d.stride_w = w_.stride[2];
    d.dilation_h = w_.dilation[1], d.dilation_w = w_.dilation[2];
    d.pad_top = w_.begin[1], d.pad_left = w_.begin[2];
    d.weights = weights_.view().f32();
    d.bias = has_bias_ ? bias_.view().f32() : nullptr;
    if (!residual) {
      d.activation = tail_.activation;
      d.alpha = tail_.alpha;
      d.beta = tail_.beta;
    }
    // Bands of output rows: of one image for several threads, of whole images else.
    const Index outputs = w_.out_count() * out_channels_, row = w_.out[2] * out_channels_;
    const bool split = executor.threads() > 1 && outputs * w_.taps() >= kernel::least_parallel_macs;
    const Index bands = split ? std::min(w_.out[1], 2 * executor.threads()) : 1;
    executor.each(batch * bands, [&](Index part) {
      const Index image = part / bands;
      const kernel::Range rows = kernel::part_of(w_.out[1], 1, bands, part % bands);
      kernel::Depthwise one = d;
      one.in = in + image * image_size();
      one.out = out + image * outputs + rows.first * row;
      one.first_row = rows.first, one.out_h = rows.last - rows.first;
      kernels.depthwise(one);
      if (residual) {
        const Index n = one.out_h * row;
        kernels.binary(kernel::Binary::add, one.out, 1, residual + image * outputs + rows.first * row, 1, one.out, n);
        kernels.unary(tail_.activation, one.out, one.out, n, tail_.alpha, tail_.beta);
      }
    });
  }

  Window w_;
  Index in_channels_ = 0, out_channels_ = 0, group_ = 1;
  FusedTail tail_;
  bool has_bias_ = false, planes_ = false, spatial_ = false;
  Kind kind_ = Kind::indirect;
  Index taps_ = 1, run_ = 0, packed_ = 0;
  Tensor weights_, bias_, zeros_;
  std::vector<std::int32_t> offsets_;
  std::vector<float> padding_;  // pixels of a row, or empty: zeros
  WinogradPlan winograd_;
  WinogradRowsPlan winograd_rows_;
  WinogradStridedPlan winograd_strided_;
};

/// Shape of a tensor [N, C, spatial...], in either order of channels.
inline Index channels_of(const Shape& s, bool channels_last) noexcept {
  return channels_last ? s[s.rank() - 1] : s[1];
}

/// ONNX Conv. Inputs: X, W, optional B, and (after fusion) a residual of the output's shape. Channels stand second, or
/// last (`offramp.channels_last`), or only those of X second (`offramp.planes`, too).
class ConvOperation final : public Operation {
 public:
  ConvOperation(const Node& node, Index)
      : window_(node),
        group_(node.integer("group", 1)),
        channels_last_(node.integer("offramp.channels_last", 0) != 0),
        planes_(node.integer("offramp.planes", channels_last_ ? 0 : 1) != 0),
        padding_(node.reals("offramp.padding")),
        tail_(node) {}

  InputUse use(std::size_t i) const noexcept override {
    return i == 1 || i == 2 ? InputUse::parameter : InputUse::data;
  }
  bool has_packed(std::size_t i) const noexcept override { return i == 1; }
  std::span<const std::byte> packed() const noexcept override { return plan_.packed(); }
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView &x = float_input(in, 0), &w = float_input(in, 1);
    require_rank(x, 3, 5, "input");
    require_rank(w, x.shape.rank(), x.shape.rank(), "weights");
    const Index channels = channels_of(x.shape, !planes_);
    OFFRAMP_REQUIRE(
        group_ > 0 && w.shape[1] == channels / group_ && channels % group_ == 0 && w.shape[0] % group_ == 0,
        "weights " + w.shape.text() + " in " + std::to_string(group_) + " groups do not fit input " + x.shape.text());
    if (const TensorView* b = optional_input(in, 2)) {
      OFFRAMP_REQUIRE(
          b->type == DType::f32 && b->count() == w.shape[0],
          "expected a bias of " + std::to_string(w.shape[0]) + " float32 elements, found shape " + b->shape.text());
    }
    const Window window = window_.resolve(x.shape, w.shape, !planes_);
    Shape shape = window.output(x.shape, w.shape[0], channels_last_);
    if (const TensorView* r = optional_input(in, 3)) {
      OFFRAMP_REQUIRE(r->type == DType::f32 && r->shape == shape,
                      "residual " + r->shape.text() + " is not of shape " + shape.text());
    }
    if (tail_.pooling != kernel::Pooling::none) {
      for (int a = 1; a < shape.rank(); ++a) {
        if (a != (channels_last_ ? shape.rank() - 1 : 1)) shape[a] /= 2;
      }
    }
    set_output(out[0], DType::f32, shape);
  }
  void prepare(std::span<const TensorView> in, const PrepareOptions& options) override {
    const TensorView &x = in[0], &w = in[1];
    const TensorView* b = optional_input(in, 2);
    OFFRAMP_REQUIRE(w.data && (!b || b->data), "weights must be known before the network runs");
    plan_ = ConvPlan(window_.resolve(x.shape, w.shape, !planes_), channels_of(x.shape, !planes_), w.shape[0], group_,
                     w.f32(), b ? b->f32() : nullptr, tail_, options, planes_, padding_);
  }
  Cost cost(std::span<const TensorView> in, std::span<const TensorView> out) const noexcept override {
    const Index macs = in[1].shape[0] > 0 ? out[0].count() * (in[1].count() / in[1].shape[0]) : 0;
    return {macs, 2 * macs + (optional_input(in, 2) ? out[0].count() : 0), 0};
  }
  Index executed(std::span<const TensorView> in, std::span<const TensorView>) const noexcept override {
    return plan_.cost(in[0].shape[0], optional_input(in, 3) != nullptr).executed;
  }
  Index transformed(std::span<const TensorView> in) const noexcept override {
    return plan_.transformed(in[0].shape[0]);
  }
  std::size_t scratch_bytes(std::span<const TensorView> in, std::span<const TensorView> out,
                            Index threads) const noexcept override {
    const std::size_t own = plan_.scratch_bytes(in[0].shape[0], threads);
    return channels_last_ ? own : own + out[0].bytes() + 2 * alignment + residual_bytes(in);
  }
  std::string algorithm() const override { return plan_.algorithm(); }

  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &y = run.out[0];
    const TensorView* r = optional_input(run.in, 3);
    const Index batch = x.shape[0];
    if (channels_last_) {
      plan_.forward(x.f32(), r ? r->f32() : nullptr, y.as<float>(), batch, run.scratch, run.kernels, run.executor,
                    run.next);
      return true;
    }
    const std::size_t own = plan_.scratch_bytes(batch, run.executor.threads());
    auto* out = reinterpret_cast<float*>(run.scratch + (own + alignment - 1) / alignment * alignment);
    auto* residual = out + (y.count() + 15) / 16 * 16;
    if (r) to_channels_last(*r, residual);
    plan_.forward(x.f32(), r ? residual : nullptr, out, batch, run.scratch, run.kernels, run.executor);
    const Index pixels = y.shape.count(2, y.shape.rank()), channels = y.shape[1];
    for (Index i = 0; i < batch; ++i) {
      kernel::transpose(out + i * pixels * channels, pixels, channels, y.as<float>() + i * pixels * channels);
    }
    return true;
  }

 private:
  static void to_channels_last(const TensorView& x, float* out) noexcept {
    const Index pixels = x.shape.count(2, x.shape.rank()), channels = x.shape[1];
    for (Index i = 0; i < x.shape[0]; ++i) {
      kernel::transpose(x.f32() + i * pixels * channels, channels, pixels, out + i * pixels * channels);
    }
  }
  static std::size_t residual_bytes(std::span<const TensorView> in) noexcept {
    const TensorView* r = optional_input(in, 3);
    return r ? r->bytes() + alignment : 0;
  }

  WindowAttributes window_;
  Index group_;
  bool channels_last_, planes_;
  std::vector<float> padding_;  // of each channel; empty: zeros
  FusedTail tail_;
  ConvPlan plan_;
};

/// ONNX ConvTranspose: a matrix product for every input pixel, scattered into the output.
class ConvTransposeOperation final : public Operation {
 public:
  ConvTransposeOperation(const Node& node, Index)
      : window_(node),
        group_(node.integer("group", 1)),
        output_padding_(node.integers("output_padding")),
        output_shape_(node.integers("output_shape")) {}

  InputUse use(std::size_t i) const noexcept override { return i == 0 ? InputUse::data : InputUse::parameter; }
  bool has_packed(std::size_t i) const noexcept override { return i == 1; }
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView &x = float_input(in, 0), &w = float_input(in, 1);
    require_rank(x, 3, 5, "input");
    require_rank(w, x.shape.rank(), x.shape.rank(), "weights");
    OFFRAMP_REQUIRE(
        group_ > 0 && w.shape[0] == x.shape[1] && w.shape[0] % group_ == 0,
        "weights " + w.shape.text() + " in " + std::to_string(group_) + " groups do not fit input " + x.shape.text());
    if (const TensorView* b = optional_input(in, 2)) {
      OFFRAMP_REQUIRE(b->type == DType::f32 && b->count() == w.shape[1] * group_,
                      "expected a bias of " + std::to_string(w.shape[1] * group_) + " float32 elements, found shape " +
                          b->shape.text());
    }
    const Window window = window_.resolve_transposed(x.shape, w.shape, output_padding_, output_shape_);
    set_output(out[0], DType::f32, window.output(x.shape, w.shape[1] * group_, false));
  }
  void prepare(std::span<const TensorView> in, const PrepareOptions& /*options*/) override {
    const TensorView &x = in[0], &w = in[1];
    const TensorView* b = optional_input(in, 2);
    OFFRAMP_REQUIRE(w.data && (!b || b->data), "weights must be known before the network runs");
    plan_ = window_.resolve_transposed(x.shape, w.shape, output_padding_, output_shape_);
    const Index k = w.shape[0] / group_, n = w.shape[1] * plan_.taps();
    packed_ = kernel::packed_size(k, n);
    weights_ = Tensor(DType::f32, {group_, packed_});
    for (Index g = 0; g < group_; ++g) {
      kernel::pack(w.f32() + g * k * n, n, 1, k, n, 1.0f, static_cast<float*>(weights_.mutable_data()) + g * packed_);
    }
    bias_ = Tensor(DType::f32, {w.shape[1] * group_});
    if (b) std::memcpy(bias_.mutable_data(), b->data, bias_.bytes());
    out_group_ = w.shape[1];
  }
  Cost cost(std::span<const TensorView> in, std::span<const TensorView> out) const noexcept override {
    const Index macs = in[1].shape[0] > 0 ? in[0].count() * (in[1].count() / in[1].shape[0]) : 0;
    return {macs, 2 * macs + (optional_input(in, 2) ? out[0].count() : 0), 0};
  }
  Index executed(std::span<const TensorView> in, std::span<const TensorView> out) const noexcept override {
    const Index n = out_group_ * plan_.taps();
    return 2 * in[0].count() * kernel::padded_columns(n) + in[0].count() * n + out[0].count();
  }
  std::size_t scratch_bytes(std::span<const TensorView> in, std::span<const TensorView>,
                            Index) const noexcept override {
    const Index pixels = plan_.in_count();
    return static_cast<std::size_t>(pixels * in[0].shape[1] + 16 + pixels * out_group_ * plan_.taps()) * sizeof(float);
  }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &y = run.out[0];
    const Index pixels = plan_.in_count(), channels = x.shape[1], n = out_group_ * plan_.taps(), k = channels / group_;
    auto* in = reinterpret_cast<float*>(run.scratch);
    auto* columns = in + (pixels * channels + 15) / 16 * 16;
    for (Index image = 0; image < x.shape[0]; ++image) {
      kernel::transpose(x.f32() + image * pixels * channels, channels, pixels, in);
      float* out = y.as<float>() + image * plan_.out_count() * out_group_ * group_;
      for (Index c = 0; c < out_group_ * group_; ++c) {
        std::fill_n(out + c * plan_.out_count(), plan_.out_count(), bias_.view().f32()[c]);
      }
      for (Index g = 0; g < group_; ++g) {
        kernel::Gemm m;
        m.m = pixels, m.n = n, m.run = k;
        m.a = in + g * k, m.lda = channels;
        m.b = weights_.view().f32() + g * packed_;
        m.c = columns, m.ldc = n;
        kernel::gemm(m, run.kernels, run.executor);
        plan_.scatter(columns, out_group_, out + g * out_group_ * plan_.out_count());
      }
    }
    return true;
  }

 private:
  WindowAttributes window_;
  Index group_;
  std::vector<Index> output_padding_, output_shape_;
  Window plan_;  // `in` is the input of the transposed convolution, `out` its output
  Tensor weights_, bias_;
  Index packed_ = 0, out_group_ = 0;
};

}  // namespace offramp

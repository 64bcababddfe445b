/// @file integer.hpp
/// Convolutions, products, additions and poolings of bytes: ONNX's own operators by plain loops, and the fast ones that
/// `passes::fuse_integers` makes of networks in either quantized form (QDQ or QOperator).
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "offramp/kernel/split.hpp"
#include "offramp/layer/conv.hpp"
#include "offramp/layer/quantize.hpp"
#include "offramp/layer/ramped.hpp"

namespace offramp {

// ---- ONNX's operators, as they are defined -------------------------------------------------------------------------

/// QLinearConv and ConvInteger. The result is exact; graphs that are prepared use IntegerConvOperation instead.
class PlainIntegerConvOperation final : public Operation {
 public:
  PlainIntegerConvOperation(const Node& node, Index)
      : window_(node), group_(node.integer("group", 1)), requantizes_(node.op == "QLinearConv") {}

  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView &x = required_input(in, 0), &w = required_input(in, weights());
    OFFRAMP_REQUIRE(is_byte(x.type) && is_byte(w.type), "input and weights must be bytes");
    require_rank(x, 3, 5, "input");
    require_rank(w, x.shape.rank(), x.shape.rank(), "weights");
    OFFRAMP_REQUIRE(
        group_ > 0 && x.shape[1] % group_ == 0 && w.shape[1] == x.shape[1] / group_ && w.shape[0] % group_ == 0,
        "weights " + w.shape.text() + " do not fit input " + x.shape.text());
    DType type = DType::i32;
    if (requantizes_) {
      for (const std::size_t i : {1u, 4u, 6u}) float_input(in, i);
      for (const std::size_t i : {2u, 5u, 7u}) required_input(in, i);
      OFFRAMP_REQUIRE(is_byte(in[7].type), "the zero point of the output must be a byte");
      for (const std::size_t i : {1u, 2u, 6u, 7u})
        OFFRAMP_REQUIRE(in[i].count() == 1, "expected one scale and zero point");
      for (const std::size_t i : {4u, 5u})
        OFFRAMP_REQUIRE(in[i].count() == 1 || in[i].count() == w.shape[0], "scales of weights must fit their channels");
      if (const TensorView* b = optional_input(in, 8))
        OFFRAMP_REQUIRE(b->type == DType::i32 && b->count() == w.shape[0], "the bias must be int32, one a channel");
      type = in[7].type;
    } else {
      if (const TensorView* z = optional_input(in, 2)) OFFRAMP_REQUIRE(z->count() == 1, "expected one zero point");
      if (const TensorView* z = optional_input(in, 3))
        OFFRAMP_REQUIRE(z->count() == 1 || z->count() == w.shape[0], "zero points must fit the channels");
    }
    set_output(out[0], type, window_.resolve(x.shape, w.shape, false).output(x.shape, w.shape[0], false));
  }
  Cost cost(std::span<const TensorView> in, std::span<const TensorView> out) const noexcept override {
    const TensorView& w = in[weights()];
    const Index macs = w.shape[0] > 0 ? out[0].count() * (w.count() / w.shape[0]) : 0;
    return {macs, 2 * macs, 2 * macs};
  }
  bool is_integer() const noexcept override { return true; }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &w = run.in[weights()], &y = run.out[0];
    const TensorView* xz = optional_input(run.in, 2);
    const TensorView* wz = optional_input(run.in, requantizes_ ? 5 : 3);
    const TensorView* bias = requantizes_ ? optional_input(run.in, 8) : nullptr;
    const std::int64_t x_zero = xz ? integer_at(*xz, 0) : 0;
    const Index outs = w.shape[0], out_group = outs / group_, in_group = w.shape[1];
    // The window was checked when shapes were inferred; here it is walked axis by axis, whatever their number.
    const int axes = x.shape.rank() - 2;
    const Index pixels = y.shape.count(2, y.shape.rank()), in_pixels = x.shape.count(2, x.shape.rank());
    const Index taps = w.shape.count(2, w.shape.rank());
    for (Index n = 0; n < x.shape[0]; ++n) {
      for (Index o = 0; o < outs; ++o) {
        const std::int64_t w_zero = wz ? integer_at(*wz, wz->count() == 1 ? 0 : o) : 0;
        for (Index p = 0; p < pixels; ++p) {
          std::int64_t sum = bias ? integer_at(*bias, o) : 0;
          for (Index t = 0; t < taps; ++t) {
            Index at = 0, rest_p = p, rest_t = t, stride = 1;
            bool inside = true;
            for (int a = axes - 1; a >= 0; --a) {
              const Index out_at = rest_p % y.shape[a + 2], tap = rest_t % w.shape[a + 2];
              rest_p /= y.shape[a + 2], rest_t /= w.shape[a + 2];
              const Index i = position(a, out_at, tap);
              inside = inside && i >= 0 && i < x.shape[a + 2];
              at += i * stride;
              stride *= x.shape[a + 2];
            }
            if (!inside) continue;
            for (Index c = 0; c < in_group; ++c) {
              const std::int64_t v = integer_at(x, (n * x.shape[1] + o / out_group * in_group + c) * in_pixels + at);
              sum += (v - x_zero) * (integer_at(w, (o * in_group + c) * taps + t) - w_zero);
            }
          }
          const Index to = (n * outs + o) * pixels + p;
          if (!requantizes_) {
            put_integer(y, to, sum);
            continue;
          }
          const TensorView& ws = run.in[4];
          const float scale = run.in[1].f32()[0] * ws.f32()[ws.count() == 1 ? 0 : o] / run.in[6].f32()[0];
          put_integer(
              y, to, quantized(static_cast<double>(static_cast<float>(sum) * scale), integer_at(run.in[7], 0), y.type));
        }
      }
    }
    return true;
  }
  void prepare(std::span<const TensorView> in, const PrepareOptions&) override {
    plan_ = window_.resolve(in[0].shape, in[weights()].shape, false);
    axes_ = in[0].shape.rank() - 2;
  }

 private:
  std::size_t weights() const noexcept { return requantizes_ ? 3 : 1; }
  Index position(int axis, Index out, Index tap) const noexcept {
    const auto a = static_cast<std::size_t>(3 - axes_ + axis);
    return out * plan_.stride[a] - plan_.begin[a] + tap * plan_.dilation[a];
  }

  WindowAttributes window_;
  Window plan_;
  int axes_ = 2;
  Index group_;
  bool requantizes_;
};

/// QLinearMatMul and MatMulInteger, as numpy.matmul.
class PlainIntegerMatMulOperation final : public Operation {
 public:
  PlainIntegerMatMulOperation(const Node& node, Index) : requantizes_(node.op == "QLinearMatMul") {}

  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView &a = required_input(in, 0), &b = required_input(in, right());
    OFFRAMP_REQUIRE(is_byte(a.type) && is_byte(b.type), "operands must be bytes");
    OFFRAMP_REQUIRE(a.shape.rank() >= 2 && b.shape.rank() >= 2, "operands must have two axes or more");
    const Index k = a.shape[a.shape.rank() - 1];
    OFFRAMP_REQUIRE(k == b.shape[b.shape.rank() - 2],
                    "operands " + a.shape.text() + " and " + b.shape.text() + " do not fit");
    Shape s = broadcast_shape(outer(a.shape), outer(b.shape));
    s.push_back(a.shape[a.shape.rank() - 2]);
    s.push_back(b.shape[b.shape.rank() - 1]);
    DType type = DType::i32;
    if (requantizes_) {
      for (const std::size_t i : {1u, 4u, 6u}) float_input(in, i);
      for (const std::size_t i : {2u, 5u, 7u}) required_input(in, i);
      for (const std::size_t i : {1u, 2u, 6u, 7u})
        OFFRAMP_REQUIRE(in[i].count() == 1, "expected one scale and zero point");
      for (const std::size_t i : {4u, 5u})
        OFFRAMP_REQUIRE(in[i].count() == 1 || (in[i].shape.rank() == 1 && in[i].count() == s[s.rank() - 1]),
                        "scales of the right side must fit its columns");
      OFFRAMP_REQUIRE(is_byte(in[7].type), "the zero point of the output must be a byte");
      type = in[7].type;
    } else {
      if (const TensorView* z = optional_input(in, 2))
        OFFRAMP_REQUIRE(z->count() == 1 || (z->shape.rank() == 1 && z->count() == s[s.rank() - 2]),
                        "zero points of the left side must fit its rows");
      if (const TensorView* z = optional_input(in, 3))
        OFFRAMP_REQUIRE(z->count() == 1 || (z->shape.rank() == 1 && z->count() == s[s.rank() - 1]),
                        "zero points of the right side must fit its columns");
    }
    set_output(out[0], type, s);
  }
  Cost cost(std::span<const TensorView> in, std::span<const TensorView> out) const noexcept override {
    const Index macs = out[0].count() * in[0].shape[in[0].shape.rank() - 1];
    return {macs, 2 * macs, 2 * macs};
  }
  bool is_integer() const noexcept override { return true; }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &a = run.in[0], &b = run.in[right()], &y = run.out[0];
    const TensorView *az = optional_input(run.in, 2), *bz = optional_input(run.in, requantizes_ ? 5 : 3);
    const Shape left = outer(a.shape), wide = outer(b.shape), batch = outer(y.shape);
    const Index m = y.shape[y.shape.rank() - 2], n = y.shape[y.shape.rank() - 1], k = a.shape[a.shape.rank() - 1];
    const auto zero = [](const TensorView* z, Index i) { return z ? integer_at(*z, z->count() == 1 ? 0 : i) : 0; };
    const BroadcastWalk walk(batch, {&left, &wide});
    walk.each([&](Index at, const auto& offset) {
      for (Index o = 0; o < walk.inner; ++o) {
        const Index pa = offset[0] + o * walk.step[0], pb = offset[1] + o * walk.step[1];
        for (Index i = 0; i < m; ++i) {
          for (Index j = 0; j < n; ++j) {
            std::int64_t sum = 0;
            for (Index l = 0; l < k; ++l)
              sum += (integer_at(a, (pa * m + i) * k + l) - zero(az, i)) *
                     (integer_at(b, (pb * k + l) * n + j) - zero(bz, j));
            const Index to = ((at + o) * m + i) * n + j;
            if (!requantizes_) {
              put_integer(y, to, sum);
              continue;
            }
            const TensorView& bs = run.in[4];
            const float scale = run.in[1].f32()[0] * bs.f32()[bs.count() == 1 ? 0 : j] / run.in[6].f32()[0];
            put_integer(
                y, to,
                quantized(static_cast<double>(static_cast<float>(sum) * scale), integer_at(run.in[7], 0), y.type));
          }
        }
      }
    });
    return true;
  }

 private:
  static Shape outer(const Shape& s) noexcept {
    Shape o;
    for (int i = 0; i + 2 < s.rank(); ++i) o.push_back(s[i]);
    return o;
  }
  std::size_t right() const noexcept { return requantizes_ ? 3 : 1; }
  bool requantizes_;
};

// ---- what the preparation makes of them ----------------------------------------------------------------------------

/// What `passes::fuse_integers` writes into a node about its output.
struct IntegerTail {
  kernel::Requantize q;
  DType type = DType::u8;

  IntegerTail() = default;
  explicit IntegerTail(const Node& node) : type(static_cast<DType>(node.integer("type", 2))) {
    q.low = node.real("low", 0), q.high = node.real("high", 255);
    q.zero = static_cast<std::int32_t>(node.integer("zero", 0));
    q.stores_real = type == DType::f32;
    q.is_signed = type == DType::i8;
    q.y_scale = node.real("y_scale", 1), q.residual_scale = node.real("residual_scale", 1);
    q.residual_zero = node.real("residual_zero", 0);
    q.sum_low = node.real("sum_low", 0), q.sum_high = node.real("sum_high", 255);
  }
};

namespace detail {

/// Signed bytes as unsigned ones that are 128 larger.
inline void flip_signs(const TensorView& x, std::byte* out) noexcept {
  const auto* from = static_cast<const std::byte*>(x.data);
  for (Index i = 0; i < x.count(); ++i) out[i] = from[i] ^ std::byte{0x80};
}

}  // namespace detail

/// Weights of a product of bytes, packed, with the bias that also takes the left side's zero point away.
class IntegerWeights {
 public:
  IntegerWeights() = default;
  /// `columns` is [taps][run][n]; `bias` null or [n]; `scale` [n].
  IntegerWeights(const std::int8_t* columns, Index taps, Index run, Index n, const std::int32_t* bias,
                 const float* scale, std::int32_t x_zero, Index padding)
      : packed_(DType::i8, {kernel::integer_packed_size(taps, run, n)}),
        bias_(DType::i32, {(n + padding - 1) / padding * padding}),
        scale_(DType::f32, {(n + padding - 1) / padding * padding}) {
    kernel::integer_pack(columns, taps, run, n, static_cast<std::int8_t*>(packed_.mutable_data()));
    auto* b = static_cast<std::int32_t*>(bias_.mutable_data());
    for (Index j = 0; j < n; ++j) {
      std::int64_t sum = bias ? bias[j] : 0;
      for (Index i = 0; i < taps * run; ++i) sum -= std::int64_t{x_zero} * columns[i * n + j];
      b[j] = static_cast<std::int32_t>(std::clamp<std::int64_t>(sum, INT32_MIN, INT32_MAX));
    }
    std::memcpy(scale_.mutable_data(), scale, static_cast<std::size_t>(n) * sizeof(float));
  }
  const std::int8_t* packed() const noexcept { return static_cast<const std::int8_t*>(packed_.data()); }
  std::span<const std::byte> raw() const noexcept { return packed_.raw(); }
  const std::int32_t* bias() const noexcept { return static_cast<const std::int32_t*>(bias_.data()); }
  const float* scale() const noexcept { return static_cast<const float*>(scale_.data()); }

 private:
  Tensor packed_, bias_, scale_;
};

/// Convolution of bytes, channels last. Inputs: X (bytes), W (int8, [out][in / group][kernel...]), bias (int32 or
/// absent), scale of a sum (float32, one a channel), residual (bytes or absent). Attributes: those of Conv, `x_zero`,
/// and an IntegerTail's. Or X is float32 and rounded here, with a RampedInput's attributes: then the output is float32,
/// too, and there is one group and no residual.
class IntegerConvOperation final : public Operation {
 public:
  IntegerConvOperation(const Node& node, Index)
      : window_(node),
        group_(node.integer("group", 1)),
        channels_last_(node.integer("offramp.channels_last", 0) != 0),
        x_zero_(static_cast<std::int32_t>(node.integer("x_zero", 0))),
        ramped_(node),
        tail_(node) {}

  InputUse use(std::size_t i) const noexcept override {
    return i >= 1 && i <= 3 ? InputUse::parameter : InputUse::data;
  }
  bool has_packed(std::size_t i) const noexcept override { return i == 1; }
  std::span<const std::byte> packed() const noexcept override {
    return weights_.empty() ? std::span<const std::byte>() : weights_.front().raw();
  }
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView &x = required_input(in, 0), &w = required_input(in, 1), &scale = float_input(in, 3);
    OFFRAMP_REQUIRE((ramped_ ? x.type == DType::f32 : is_byte(x.type)) && w.type == DType::i8, "expected bytes");
    OFFRAMP_REQUIRE(!ramped_ || (group_ == 1 && tail_.type == DType::f32 && !optional_input(in, 4)),
                    "an input in float takes one group, a float output and no residual");
    require_rank(x, 3, 5, "input");
    require_rank(w, x.shape.rank(), x.shape.rank(), "weights");
    const Index channels = channels_of(x.shape, channels_last_);
    OFFRAMP_REQUIRE(group_ > 0 && channels % group_ == 0 && w.shape[1] == channels / group_ && w.shape[0] % group_ == 0,
                    "weights " + w.shape.text() + " do not fit input " + x.shape.text());
    OFFRAMP_REQUIRE(scale.count() == w.shape[0], "expected a scale for each channel");
    if (const TensorView* b = optional_input(in, 2))
      OFFRAMP_REQUIRE(b->type == DType::i32 && b->count() == w.shape[0], "expected an int32 bias for each channel");
    const Shape shape = window_.resolve(x.shape, w.shape, channels_last_).output(x.shape, w.shape[0], channels_last_);
    if (const TensorView* r = optional_input(in, 4))
      OFFRAMP_REQUIRE(is_byte(r->type) && r->shape == shape, "the residual is not of shape " + shape.text());
    set_output(out[0], tail_.type, shape);
  }
  void prepare(std::span<const TensorView> in, const PrepareOptions& options) override {
    const TensorView &x = in[0], &w = in[1], &scale = in[3];
    const TensorView* b = optional_input(in, 2);
    OFFRAMP_REQUIRE(channels_last_, "convolutions of bytes run channels last");
    w_ = window_.resolve(x.shape, w.shape, channels_last_);
    in_channels_ = x.shape[x.shape.rank() - 1], out_channels_ = w.shape[0];
    flips_ = x.type == DType::i8;
    const std::int32_t zero = x_zero_ + (flips_ ? 128 : 0);
    const Index taps = w_.taps(), in_group = in_channels_ / group_, out_group = out_channels_ / group_;
    w_.check_sizes(in_channels_);
    const auto* weights = static_cast<const std::int8_t*>(w.data);
    const auto* bias = b ? static_cast<const std::int32_t*>(b->data) : nullptr;
    depthwise_ = group_ == in_channels_ && group_ == out_channels_ && w_.in[0] == 1 && w_.kernel[0] == 1 &&
                 w_.begin[0] == 0 && group_ > 1 && tail_.type != DType::f32 && !optional_input(in, 4);
    pointwise_ = !depthwise_ && w_.is_pointwise();
    // A row of the window is one run of a padded copy: longer runs, which few channels need.
    rows_ = !depthwise_ && !pointwise_ && group_ == 1 && w_.dilation[2] == 1 && w_.kernel[2] > 1 &&
            (in_channels_ <= 64 || options.kernels.integer->reads_tiles);
    taps_ = rows_ ? taps / w_.kernel[2] : taps;
    run_ = rows_ ? w_.kernel[2] * in_group : in_group;
    fill_ = Tensor(DType::u8, {std::max(in_channels_, run_) + 64});
    std::memset(fill_.mutable_data(), zero, fill_.bytes());
    std::vector<std::int8_t> columns(static_cast<std::size_t>(taps * in_group * out_group));
    for (Index g = 0; g < group_; ++g) {
      if (depthwise_) break;
      for (Index o = 0; o < out_group; ++o) {
        for (Index c = 0; c < in_group; ++c) {
          for (Index t = 0; t < taps; ++t)
            columns[static_cast<std::size_t>((t * in_group + c) * out_group + o)] =
                weights[((g * out_group + o) * in_group + c) * taps + t];
        }
      }
      weights_.emplace_back(columns.data(), taps_, run_, out_group, bias ? bias + g * out_group : nullptr,
                            scale.f32() + g * out_group, zero, 16);
    }
    if (depthwise_) {
      std::vector<std::int8_t> by_tap(static_cast<std::size_t>(taps * out_channels_));
      kernel::transpose(weights, out_channels_, taps, by_tap.data());
      plain_ = Tensor::of<std::int8_t>({taps * out_channels_}, by_tap);
      interleaved_ = Tensor(DType::i8, {kernel::depthwise_packed_size(taps, out_channels_)});
      kernel::pack_depthwise(by_tap.data(), taps, out_channels_,
                             static_cast<std::int8_t*>(interleaved_.mutable_data()));
      weights_.emplace_back(by_tap.data(), Index{1}, taps, out_channels_, bias, scale.f32(), zero, Index{64});
    }
    strided_ = rows_ && w_.kernel[0] == 1 && w_.out[2] >= 8 && !options.kernels.integer->reads_tiles;
    if (!pointwise_ && !depthwise_ && !strided_) offsets_ = w_.offsets(in_channels_, rows_);
    if (ramped_) {
      for (std::size_t a = 0; a < 3; ++a) readers_[a] = AxisReaders(w_, a);
    }
  }
  Cost cost(std::span<const TensorView> in, std::span<const TensorView> out) const noexcept override {
    const Index macs = in[1].shape[0] > 0 ? out[0].count() * (in[1].count() / in[1].shape[0]) : 0;
    return Cost{macs, 2 * macs, 0} + Cost::plain(ramped_ ? 2 * in[0].count() : 0);
  }
  Index executed(std::span<const TensorView> in, std::span<const TensorView> out) const noexcept override {
    const Index outputs = out[0].count();
    if (depthwise_) return outputs * 2 * ((w_.taps() + 3) / 4 * 4);
    const Index out_group = out_channels_ / group_;
    const Index sums = out_group > 0 ? outputs / out_group * ((out_group + 15) / 16 * 16) : 0;
    return 2 * sums * taps_ * ((run_ + 3) / 4 * 4) + outputs * (optional_input(in, 4) ? 4 : 2) +
           (ramped_ ? RampedInput::executed * in[0].count() : 0);
  }
  std::size_t scratch_bytes(std::span<const TensorView> in, std::span<const TensorView>,
                            Index) const noexcept override {
    const std::size_t padded =
        rows_ ? static_cast<std::size_t>((w_.padded_count() + 16 * w_.stride[2]) * in_channels_ + 128) : 0;
    const auto plain = static_cast<std::size_t>(ramped_ && !rows_ ? w_.in_count() * in_channels_ : 0);
    return between_bytes() + (std::max(padded, plain) + 63) / 64 * 64 + (flips_ ? in[0].bytes() + 64 : 0);
  }
  std::string algorithm() const override {
    return depthwise_ ? "int8 depthwise" : pointwise_ ? "int8 gemm" : rows_ ? "int8 row gemm" : "int8 indirect gemm";
  }

  bool is_integer() const noexcept override { return true; }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &y = run.out[0];
    const TensorView* r = optional_input(run.in, 4);
    const auto* in = x.as<const std::uint8_t>();
    std::byte* scratch = run.scratch;
    if (flips_) {
      detail::flip_signs(x, scratch);
      in = reinterpret_cast<const std::uint8_t*>(scratch);
      scratch += (x.bytes() + 63) / 64 * 64;
    }
    if (depthwise_) return depthwise(in, run);
    const Index batch = x.shape[0], pixels = w_.out_count(), out_group = out_channels_ / group_;
    const Index size = tail_.type == DType::f32 ? 4 : 1;
    kernel::IntegerGemm g;
    g.n = out_group, g.taps = taps_, g.run = run_;
    g.fill = fill_.view().as<const std::uint8_t>();
    g.ldc = out_channels_, g.lda = in_channels_;
    g.output = tail_.q;
    g.output.ldr = out_channels_;
    g.output.residual_signed = r && r->type == DType::i8;
    const bool joined = pointwise_ && !ramped_;  // samples are rows of one product
    g.m = joined ? batch * pixels : pixels;
    g.columns_outside = g.m > 14 && kernel::integer_packed_size(taps_, run_, out_group) > 512 * 1024;
    if (!pointwise_ && !strided_) g.offsets = offsets_.data();
    g.reads_past = rows_;
    if (ramped_) g.output.low = -std::numeric_limits<float>::infinity(), g.output.high = -g.output.low;
    for (Index image = 0; image < (joined ? 1 : batch); ++image) {
      const std::uint8_t* from =
          ramped_ ? rounded(x, image, scratch, *run.kernels.integer) : as_read(in, image, scratch);
      for (Index k = 0; k < group_; ++k) {
        const IntegerWeights& w = weights_[static_cast<std::size_t>(k)];
        const Index first = image * pixels * out_channels_ + k * out_group;
        g.a = from + k * (in_channels_ / group_);
        g.b = w.packed(), g.bias = w.bias(), g.output.scale = w.scale();
        g.output.residual = r ? r->as<const std::uint8_t>() + first : nullptr;
        g.c = y.as<std::uint8_t>() + first * size;
        if (strided_) {
          rows(g, size, run);
        } else {
          kernel::integer_gemm(g, run.kernels, run.executor);
        }
      }
      if (ramped_) add_between(run, image);
    }
    return true;
  }

 private:
  // The image with its padding: copy(row, to) writes a row of pixels, the border is filled.
  template <class Copy>
  const std::uint8_t* padded(std::uint8_t* out, Copy&& copy) const noexcept {
    const std::array<Index, 3> size = w_.padded();
    const int zero = *fill_.view().as<const std::uint8_t>();
    std::uint8_t* filled = out;
    for (Index d = 0; d < w_.in[0]; ++d) {
      for (Index h = 0; h < w_.in[1]; ++h) {
        std::uint8_t* to =
            out + (((d + w_.begin[0]) * size[1] + h + w_.begin[1]) * size[2] + w_.begin[2]) * in_channels_;
        std::memset(filled, zero, static_cast<std::size_t>(to - filled));
        copy(d * w_.in[1] + h, to);
        filled = to + w_.in[2] * in_channels_;
      }
    }
    std::memset(filled, zero, static_cast<std::size_t>(out + w_.padded_count() * in_channels_ - filled));
    return out;
  }
  // For a RampedInput: words for each row of pixels of an image, at the start of the scratch memory.
  std::size_t between_bytes() const noexcept {
    if (!ramped_) return 0;
    const Index words = w_.in[0] * w_.in[1] * RampedInput::words(w_.in[2] * in_channels_);
    return (static_cast<std::size_t>(words) * sizeof(std::uint64_t) + 63) / 64 * 64;
  }
  // An image of bytes where the product reads it: with its padding where rows of the window are runs.
  const std::uint8_t* as_read(const std::uint8_t* in, Index image, std::byte* scratch) const noexcept {
    const std::uint8_t* from = in + image * w_.in_count() * in_channels_;
    if (!rows_) return from;
    const Index line = w_.in[2] * in_channels_;
    return padded(reinterpret_cast<std::uint8_t*>(scratch), [&](Index row, std::uint8_t* to) {
      std::memcpy(to, from + row * line, static_cast<std::size_t>(line));
    });
  }
  // An image of floats as bytes, likewise.
  const std::uint8_t* rounded(const TensorView& x, Index image, std::byte* scratch,
                              const kernel::IntegerKernels& kernels) const noexcept {
    auto* between = reinterpret_cast<std::uint64_t*>(scratch);
    auto* bytes = reinterpret_cast<std::uint8_t*>(scratch + between_bytes());
    const Index line = w_.in[2] * in_channels_, rows = w_.in[0] * w_.in[1];
    const float* from = x.f32() + image * rows * line;
    const auto copy = [&](Index row, std::uint8_t* to) {
      ramped_.quantize(from + row * line, line, to, between + row * RampedInput::words(line), kernels);
    };
    if (rows_) return padded(bytes, copy);
    for (Index row = 0; row < rows; ++row) copy(row, bytes + row * line);
    return bytes;
  }
  // What numbers between two bytes add to the sums of the windows that hold them; then the bounds of the outputs.
  void add_between(const OperationRun& run, Index image) const noexcept {
    const auto* between = reinterpret_cast<const std::uint64_t*>(run.scratch);
    const Index line = w_.in[2] * in_channels_, words = RampedInput::words(line);
    const Index pixels = w_.out_count(), tap = (run_ + 3) / 4 * 4, block = taps_ * tap * 16;
    const Index across = rows_ ? in_channels_ : tap, down = rows_ ? tap : w_.kernel[2] * tap;
    const float* from = run.in[0].f32() + image * w_.in_count() * in_channels_;
    float* to = run.out[0].as<float>() + image * pixels * out_channels_;
    for (Index row = 0; row < w_.in[0] * w_.in[1]; ++row) {
      const auto above = readers_[0].of(row / w_.in[1]), beside = readers_[1].of(row % w_.in[1]);
      ramped_.each_between(from + row * line, line, between + row * words, [&](Index i, float rest) {
        const Index pixel = i / in_channels_, channel = i % in_channels_;
        for (const auto [kz, z] : above) {
          for (const auto [ky, y] : beside) {
            for (const auto [kx, x] : readers_[2].of(pixel)) {
              const Index element = (kz * w_.kernel[1] + ky) * down + kx * across + channel;
              run.kernels.integer->add_row(weights_[0].packed(), block, element, rest, weights_[0].scale(),
                                           to + ((z * w_.out[1] + y) * w_.out[2] + x) * out_channels_, out_channels_);
            }
          }
        }
      });
    }
    run.kernels.unary(kernel::Unary::clip, to, to, pixels * out_channels_, tail_.q.low, tail_.q.high);
  }
  // A row of outputs after the other: their windows lie at equal steps in the padded image.
  void rows(kernel::IntegerGemm g, Index size, const OperationRun& run) const noexcept {
    const Index line = w_.padded()[2] * in_channels_, plane = w_.padded()[1] * line;
    const Index count = w_.out[0] * w_.out[1], length = w_.out[2] * out_channels_;
    g.m = w_.out[2];
    g.lda = w_.stride[2] * in_channels_, g.tap_step = w_.dilation[1] * line;
    const bool pays = count * length * taps_ * run_ >= 4 * kernel::least_parallel_macs;
    kernel::each_range(pays ? run.executor : ExecutorRef(), count, 1, [&](kernel::Range some) {
      kernel::IntegerGemm one = g;
      for (Index r = some.first; r < some.last; ++r) {
        one.a = g.a + r / w_.out[1] * w_.stride[0] * plane + r % w_.out[1] * w_.stride[1] * line;
        if (g.output.residual) one.output.residual = static_cast<const std::uint8_t*>(g.output.residual) + r * length;
        one.c = static_cast<std::uint8_t*>(g.c) + r * length * size;
        run.kernels.integer->gemm(one);
      }
    });
  }
  bool depthwise(const std::uint8_t* in, const OperationRun& run) const noexcept {
    kernel::IntegerDepthwise d;
    d.channels = in_channels_;
    d.in_h = w_.in[1], d.in_w = w_.in[2], d.out_h = w_.out[1], d.out_w = w_.out[2];
    d.kernel_h = w_.kernel[1], d.kernel_w = w_.kernel[2];
    d.stride_h = w_.stride[1], d.stride_w = w_.stride[2];
    d.dilation_h = w_.dilation[1], d.dilation_w = w_.dilation[2];
    d.pad_top = w_.begin[1], d.pad_left = w_.begin[2];
    d.fill = fill_.view().as<const std::uint8_t>();
    d.weights = static_cast<const std::int8_t*>(plain_.data());
    d.packed = static_cast<const std::int8_t*>(interleaved_.data());
    d.bias = weights_[0].bias();
    d.output = tail_.q;
    d.output.scale = weights_[0].scale();
    const Index batch = run.in[0].shape[0], outputs = w_.out_count() * out_channels_, row = w_.out[2] * out_channels_;
    const bool split = run.executor.threads() > 1 && outputs * w_.taps() >= kernel::least_parallel_macs;
    const Index bands = split ? std::min(w_.out[1], 2 * run.executor.threads()) : 1;
    run.executor.each(batch * bands, [&](Index part) {
      const Index image = part / bands;
      const kernel::Range rows = kernel::part_of(w_.out[1], 1, bands, part % bands);
      kernel::IntegerDepthwise one = d;
      one.in = in + image * w_.in_count() * in_channels_;
      one.out = run.out[0].as<std::uint8_t>() + image * outputs + rows.first * row;
      one.first_row = rows.first, one.out_h = rows.last - rows.first;
      run.kernels.integer->depthwise(one);
    });
    return true;
  }

  WindowAttributes window_;
  Index group_;
  bool channels_last_;
  std::int32_t x_zero_;
  RampedInput ramped_;
  IntegerTail tail_;
  Window w_;
  std::array<AxisReaders, 3> readers_;  // for a RampedInput
  Index in_channels_ = 0, out_channels_ = 0, taps_ = 1, run_ = 0;
  bool depthwise_ = false, pointwise_ = false, rows_ = false, strided_ = false, flips_ = false;
  std::vector<IntegerWeights> weights_;  // of each group
  Tensor fill_, plain_, interleaved_;
  std::vector<std::int32_t> offsets_;
};

/// A product of bytes by a constant matrix. Inputs: X [..., K] (bytes), W (int8, [K][N]), bias (int32 or absent), scale
/// of a sum (float32, one a column), residual (bytes or absent). Or X is float32 as for `IntegerConvOperation`.
class IntegerDenseOperation final : public Operation {
 public:
  IntegerDenseOperation(const Node& node, Index)
      : x_zero_(static_cast<std::int32_t>(node.integer("x_zero", 0))), ramped_(node), tail_(node) {}

  InputUse use(std::size_t i) const noexcept override {
    return i >= 1 && i <= 3 ? InputUse::parameter : InputUse::data;
  }
  bool has_packed(std::size_t i) const noexcept override { return i == 1; }
  std::span<const std::byte> packed() const noexcept override { return weights_.raw(); }
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView &x = required_input(in, 0), &w = required_input(in, 1), &scale = float_input(in, 3);
    OFFRAMP_REQUIRE((ramped_ ? x.type == DType::f32 : is_byte(x.type)) && w.type == DType::i8, "expected bytes");
    OFFRAMP_REQUIRE(!ramped_ || (tail_.type == DType::f32 && !optional_input(in, 4)),
                    "an input in float takes a float output and no residual");
    require_rank(w, 2, 2, "weights");
    OFFRAMP_REQUIRE(x.shape.rank() > 0 && x.shape[x.shape.rank() - 1] == w.shape[0],
                    "weights " + w.shape.text() + " do not fit input " + x.shape.text());
    OFFRAMP_REQUIRE(scale.count() == w.shape[1], "expected a scale for each column");
    if (const TensorView* b = optional_input(in, 2))
      OFFRAMP_REQUIRE(b->type == DType::i32 && b->count() == w.shape[1], "expected an int32 bias for each column");
    Shape s = x.shape;
    s[s.rank() - 1] = w.shape[1];
    if (const TensorView* r = optional_input(in, 4))
      OFFRAMP_REQUIRE(is_byte(r->type) && r->shape == s, "the residual is not of shape " + s.text());
    set_output(out[0], tail_.type, s);
  }
  void prepare(std::span<const TensorView> in, const PrepareOptions&) override {
    const TensorView& w = in[1];
    const TensorView* b = optional_input(in, 2);
    flips_ = in[0].type == DType::i8;
    k_ = w.shape[0], n_ = w.shape[1];
    weights_ = IntegerWeights(static_cast<const std::int8_t*>(w.data), 1, k_, n_,
                              b ? static_cast<const std::int32_t*>(b->data) : nullptr, in[3].f32(),
                              x_zero_ + (flips_ ? 128 : 0), 16);
  }
  Cost cost(std::span<const TensorView> in, std::span<const TensorView> out) const noexcept override {
    const Index macs = out[0].count() * in[1].shape[0];
    return Cost{macs, 2 * macs, 0} + Cost::plain(ramped_ ? 2 * in[0].count() : 0);
  }
  Index executed(std::span<const TensorView> in, std::span<const TensorView> out) const noexcept override {
    const Index rows = n_ > 0 ? out[0].count() / n_ : 0;
    return 2 * rows * ((n_ + 15) / 16 * 16) * ((k_ + 3) / 4 * 4) + 2 * out[0].count() +
           (ramped_ ? RampedInput::executed * in[0].count() : 0);
  }
  std::size_t scratch_bytes(std::span<const TensorView> in, std::span<const TensorView>,
                            Index) const noexcept override {
    if (ramped_) return between_bytes(in[0]) + static_cast<std::size_t>(in[0].count());
    return flips_ ? in[0].bytes() : 0;
  }
  std::string algorithm() const override { return "int8 gemm"; }

  bool is_integer() const noexcept override { return true; }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &y = run.out[0];
    const TensorView* r = optional_input(run.in, 4);
    kernel::IntegerGemm g;
    g.m = n_ > 0 ? y.count() / n_ : 0, g.n = n_, g.run = k_;
    g.a = x.as<const std::uint8_t>(), g.lda = k_;
    auto* between = reinterpret_cast<std::uint64_t*>(run.scratch);
    const Index words = RampedInput::words(k_);
    if (ramped_) {
      auto* bytes = reinterpret_cast<std::uint8_t*>(run.scratch + between_bytes(x));
      for (Index i = 0; i < g.m; ++i)
        ramped_.quantize(x.f32() + i * k_, k_, bytes + i * k_, between + i * words, *run.kernels.integer);
      g.a = bytes;
    }
    if (flips_) {
      detail::flip_signs(x, run.scratch);
      g.a = reinterpret_cast<const std::uint8_t*>(run.scratch);
    }
    g.b = weights_.packed(), g.bias = weights_.bias();
    g.output = tail_.q;
    g.output.scale = weights_.scale();
    g.output.residual = r ? r->data : nullptr, g.output.ldr = n_;
    g.output.residual_signed = r && r->type == DType::i8;
    g.c = y.data, g.ldc = n_;
    g.columns_outside = g.m > 14 && kernel::integer_packed_size(1, k_, n_) > 512 * 1024;
    if (ramped_) g.output.low = -std::numeric_limits<float>::infinity(), g.output.high = -g.output.low;
    kernel::integer_gemm(g, run.kernels, run.executor);
    if (!ramped_) return true;
    for (Index i = 0; i < g.m; ++i) {
      ramped_.each_between(x.f32() + i * k_, k_, between + i * words, [&](Index element, float rest) {
        run.kernels.integer->add_row(weights_.packed(), (k_ + 3) / 4 * 64, element, rest, weights_.scale(),
                                     y.as<float>() + i * n_, n_);
      });
    }
    run.kernels.unary(kernel::Unary::clip, y.f32(), y.as<float>(), y.count(), tail_.q.low, tail_.q.high);
    return true;
  }

 private:
  // For a RampedInput: words for each row, at the start of the scratch memory.
  std::size_t between_bytes(const TensorView& x) const noexcept {
    const Index words = x.count() / std::max<Index>(1, k_) * RampedInput::words(k_);
    return static_cast<std::size_t>(words) * sizeof(std::uint64_t);
  }

  std::int32_t x_zero_;
  RampedInput ramped_;
  IntegerTail tail_;
  Index k_ = 0, n_ = 0;
  bool flips_ = false;
  IntegerWeights weights_;
};

/// An addition of two tensors of bytes of one shape. Attributes: `a_zero`, and an IntegerTail's, where y is a.
class IntegerAddOperation final : public Operation {
 public:
  IntegerAddOperation(const Node& node, Index)
      : a_zero_(static_cast<std::int32_t>(node.integer("a_zero", 0))), tail_(node) {}
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView &a = required_input(in, 0), &b = required_input(in, 1);
    OFFRAMP_REQUIRE(is_byte(a.type) && is_byte(b.type) && a.shape == b.shape,
                    "operands " + a.shape.text() + " and " + b.shape.text() + " differ");
    set_output(out[0], tail_.type, a.shape);
  }
  Cost cost(std::span<const TensorView>, std::span<const TensorView> out) const noexcept override {
    return {0, out[0].count(), 6 * out[0].count()};
  }
  bool is_integer() const noexcept override { return true; }
  bool forward(const OperationRun& run) const noexcept override {
    kernel::Requantize q = tail_.q;
    q.residual = run.in[1].data;
    q.residual_signed = run.in[1].type == DType::i8;
    run.kernels.integer->add(run.in[0].data, a_zero_, run.in[0].type == DType::i8, run.out[0].data, run.out[0].count(),
                             q);
    return true;
  }

 private:
  std::int32_t a_zero_;
  IntegerTail tail_;
};

/// The mean of all pixels of each channel, of bytes. Attributes: `x_zero`, `scale` (of x over that of y), and an
/// IntegerTail's.
class IntegerGlobalPoolOperation final : public Operation {
 public:
  IntegerGlobalPoolOperation(const Node& node, Index)
      : channels_last_(node.integer("offramp.channels_last", 0) != 0),
        x_zero_(static_cast<std::int32_t>(node.integer("x_zero", 0))),
        ratio_(node.real("scale", 1)),
        tail_(node) {}
  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView& x = required_input(in, 0);
    OFFRAMP_REQUIRE(is_byte(x.type) && x.count() > 0, "expected bytes");
    require_rank(x, 3, Shape::max_rank, "input");
    Shape s = x.shape;
    for (int i = 2; i < s.rank(); ++i) s[channels_last_ ? i - 1 : i] = 1;
    set_output(out[0], tail_.type, s);
  }
  void prepare(std::span<const TensorView> in, const PrepareOptions&) override {
    OFFRAMP_REQUIRE(channels_last_, "poolings of bytes run channels last");
    const Index channels = channels_of(in[0].shape, true);
    const Index pixels = in[0].count() / (in[0].shape[0] * channels);
    scale_ = Tensor(DType::f32, {(channels + 15) / 16 * 16});
    std::fill_n(static_cast<float*>(scale_.mutable_data()), channels, ratio_ / static_cast<float>(pixels));
  }
  Cost cost(std::span<const TensorView> in, std::span<const TensorView>) const noexcept override {
    return Cost::plain(in[0].count());
  }
  std::size_t scratch_bytes(std::span<const TensorView> in, std::span<const TensorView>,
                            Index) const noexcept override {
    return static_cast<std::size_t>(channels_of(in[0].shape, channels_last_)) * sizeof(std::int32_t);
  }
  bool is_integer() const noexcept override { return true; }
  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &y = run.out[0];
    const Index channels = channels_of(x.shape, true), pixels = x.count() / (x.shape[0] * channels);
    auto* sums = reinterpret_cast<std::int32_t*>(run.scratch);
    kernel::Requantize q = tail_.q;
    q.scale = static_cast<const float*>(scale_.data());
    const Index size = tail_.type == DType::f32 ? 4 : 1;
    for (Index i = 0; i < x.shape[0]; ++i) {
      run.kernels.integer->sum(x.as<const std::uint8_t>() + i * pixels * channels, channels, pixels, sums, channels,
                               x.type == DType::i8);
      for (Index c = 0; c < channels; ++c) sums[c] -= static_cast<std::int32_t>(pixels) * x_zero_;
      run.kernels.integer->requantize(sums, y.as<std::uint8_t>() + i * channels * size, channels, q);
    }
    return true;
  }

 private:
  bool channels_last_;
  std::int32_t x_zero_;
  float ratio_;
  IntegerTail tail_;
  Tensor scale_;
};

}  // namespace offramp

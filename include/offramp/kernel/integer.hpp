/// @file integer.hpp
/// What the kernels on 8-bit integers take, and their table.
#pragma once

#include <algorithm>
#include <cstdint>

#include "offramp/core/shape.hpp"

namespace offramp::kernel {

/// How sums of products become outputs, rounding to nearest even as ONNX does:
///   y = clamp(round(sum * scale), low, high), and with a residual r (a quantized addition behind a quantized product)
///   y = clamp(round(y * y_scale + (r - residual_zero) * residual_scale), sum_low, sum_high).
/// Bounds are relative to the zero point that is added at last.
struct Requantize {
  const float* scale = nullptr;  ///< of each column, padded to a multiple of 16
  float low = 0, high = 255;
  const void* residual = nullptr;  ///< null, or rows of bytes `ldr` apart
  Index ldr = 0;
  bool residual_signed = false;
  float y_scale = 1, residual_scale = 1, residual_zero = 0, sum_low = 0, sum_high = 255;
  std::int32_t zero = 0;     ///< zero point of what is stored
  bool stores_real = false;  ///< y = clamp(sum * scale) as float32, without a residual
  bool is_signed = false;    ///< bytes are signed
};

/// A product of unsigned and signed bytes, C = requantize(A B + bias), with the rows of A given as in `Gemm`. A row of
/// C may be written twice: it must not lie where A or the residual does.
struct IntegerGemm {
  static constexpr Index least_strided_rows = 8;  ///< fewer rows at equal steps are taken like rows anywhere
  Index m = 0, n = 0, taps = 1, run = 0;          ///< K = taps * run
  const std::uint8_t* a = nullptr;
  Index lda = 0;
  Index tap_step = 0;                     ///< without offsets: bytes from tap to tap, but for kernels that read tiles
  const std::int32_t* offsets = nullptr;  ///< [m][taps] from `a`; negative: `fill`
  const std::uint8_t* fill = nullptr;     ///< a run of zero points
  const std::int8_t* b = nullptr;         ///< blocks of 16 columns, each [taps][run / 4, rounded up][16][4]
  const std::int32_t* bias = nullptr;     ///< n padded to 16; holds what A's zero point contributes, too
  Requantize output;
  void* c = nullptr;
  Index ldc = 0;
  bool columns_outside = false;
  /// Up to 3 bytes behind a run may be read (`run` is rounded up to a multiple of 4), and up to 15 runs at the same
  /// distance behind the last.
  bool reads_past = false;
};

/// Depthwise convolution of unsigned by signed bytes, channels last, one image, multiplier 1.
struct IntegerDepthwise {
  Index channels = 0, in_h = 0, in_w = 0, out_h = 0, out_w = 0;
  Index kernel_h = 0, kernel_w = 0, stride_h = 1, stride_w = 1, dilation_h = 1, dilation_w = 1, pad_top = 0,
        pad_left = 0;
  Index first_row = 0;  ///< of the image, that `out` begins with; out_h counts from there
  const std::uint8_t* in = nullptr;
  const std::uint8_t* fill = nullptr;    ///< `channels` zero points
  const std::int8_t* weights = nullptr;  ///< [kernel_h][kernel_w][channels]
  const std::int8_t* packed = nullptr;   ///< the same by `pack_depthwise`
  const std::int32_t* bias = nullptr;    ///< channels padded to 64
  Requantize output;                     ///< its scale padded to 64, too; without a residual
  std::uint8_t* out = nullptr;
};

/// Rounding to unsigned bytes without jumps. Close to the middle between two bytes a number is taken to lie between
/// them, on a line that leads from one to the other: what differs in its last bits, as it does from one runtime to the
/// next, differs by at most 1 / (2 ramp) as much behind it, where plain rounding makes a whole step of it.
///   v = clamp(x * factor, low, high), d = v - round(v),
///   y = round(v) + (d - clamp(d, ramp - 1 / 2, 1 / 2 - ramp)) / (2 ramp).
struct RampedRounding {
  float factor = 0;          ///< steps in a unit
  std::int32_t zero = 0;     ///< byte that stands for 0; bounds are those of a byte
  float ramp = 1.0f / 1024;  ///< half of a line's width, in steps: above 0, at most 1 / 2

  float low() const noexcept { return static_cast<float>(-zero); }
  float high() const noexcept { return static_cast<float>(255 - zero); }
  /// Largest |d| of a number that a byte holds as it is.
  float flat() const noexcept { return 0.5f - ramp; }
  /// What `y` is above round(v), for |v| < 2^22. A NaN stays one.
  float rest(float x) const noexcept {
    const float v = std::clamp(x * factor, low(), high());
    const float d = v - ((v + 12582912.0f) - 12582912.0f);
    return (d - std::clamp(d, -flat(), flat())) * (0.5f / ramp);
  }
};

/// The kernels on bytes of one instruction set.
struct IntegerKernels {
  void (*gemm)(const IntegerGemm&) noexcept;
  void (*depthwise)(const IntegerDepthwise&) noexcept;
  /// out[i] = clamp(round(in[i] / scale) + zero), to bytes, signed where `is_signed`.
  void (*quantize)(const float* in, void* out, Index n, float scale, std::int32_t zero, bool is_signed) noexcept;
  /// out[i] = round(clamp(in[i] * factor, low, high)) + zero, and of each 64 numbers which of them are no bytes but lie
  /// on a ramp, or are NaN.
  void (*quantize_ramped)(const float* in, std::uint8_t* out, Index n, const RampedRounding& by,
                          std::uint64_t* between) noexcept;
  /// out[j] += rest * scale[j] * b[element][j] for n columns of a packed right side, whose blocks are `block` bytes
  /// apart; `scale` is padded to 16.
  void (*add_row)(const std::int8_t* b, Index block, Index element, float rest, const float* scale, float* out,
                  Index n) noexcept;
  /// out[i] = (in[i] - zero) * scale.
  void (*dequantize)(const void* in, float* out, Index n, float scale, std::int32_t zero, bool is_signed) noexcept;
  /// out[i] = clamp(round((a[i] - a_zero) * a_scale + (b[i] - b_zero) * b_scale)): an addition; `output` has its
  /// residual's fields for b and `y_scale` for a.
  void (*add)(const void* a, std::int32_t a_zero, bool a_signed, void* out, Index n, const Requantize& output) noexcept;
  /// out[i] = the largest of `count` rows of n bytes.
  void (*largest)(const void* const* rows, Index count, void* out, Index n, bool is_signed) noexcept;
  /// out[i] = the sum of `count` rows of n bytes, `step` bytes apart.
  void (*sum)(const void* in, Index step, Index count, std::int32_t* out, Index n, bool is_signed) noexcept;
  /// A row of sums to a row of outputs.
  void (*requantize)(const std::int32_t* sums, void* out, Index n, const Requantize& output) noexcept;
  /// `rounds` times 12 independent products of four bytes each a lane: lanes * 96 operations a round.
  std::int32_t (*multiply_adds)(Index rounds, std::int32_t x) noexcept;
  Index lanes;       ///< sums in a vector
  bool reads_tiles;  ///< `gemm` wants rows at equal distances, that is images with their padding
};

/// Bytes that a packed k x n right side takes.
constexpr Index integer_packed_size(Index taps, Index run, Index n) noexcept {
  return taps * ((run + 3) / 4 * 4) * ((n + 15) / 16 * 16);
}

/// Packs element (tap, i, j) at b[(tap * run + i) * n + j] into blocks of 16 columns, each [taps][run / 4][16][4].
inline void integer_pack(const std::int8_t* b, Index taps, Index run, Index n, std::int8_t* out) noexcept {
  const Index groups = (run + 3) / 4;
  for (Index j0 = 0; j0 < n; j0 += 16) {
    for (Index t = 0; t < taps; ++t) {
      for (Index g = 0; g < groups; ++g) {
        for (Index j = j0; j < j0 + 16; ++j) {
          for (Index i = 4 * g; i < 4 * g + 4; ++i)
            *out++ = i < run && j < n ? b[(t * run + i) * n + j] : std::int8_t{0};
        }
      }
    }
  }
}

/// Channel that stands at place `i` of the four vectors of a block of 64 depthwise channels.
constexpr Index depthwise_channel(Index i) noexcept {
  const Index vector = i / 16, lane = i % 16 / 4;
  return 16 * lane + 4 * vector + i % 4;
}

/// Bytes of the depthwise weights in blocks of 64 channels, each [taps / 4, rounded up][64, see
/// `depthwise_channel`][4].
constexpr Index depthwise_packed_size(Index taps, Index channels) noexcept {
  return (taps + 3) / 4 * 4 * ((channels + 63) / 64 * 64);
}

inline void pack_depthwise(const std::int8_t* weights, Index taps, Index channels, std::int8_t* out) noexcept {
  for (Index c0 = 0; c0 < channels; c0 += 64) {
    for (Index t0 = 0; t0 < taps; t0 += 4) {
      for (Index i = 0; i < 64; ++i) {
        const Index c = c0 + depthwise_channel(i);
        for (Index t = t0; t < t0 + 4; ++t)
          *out++ = c < channels && t < taps ? weights[t * channels + c] : std::int8_t{0};
      }
    }
  }
}

}  // namespace offramp::kernel

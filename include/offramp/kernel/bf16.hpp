/// @file bf16.hpp
/// What the kernels on bfloat16 take, and their table. Sums are float32.
#pragma once

#include <algorithm>
#include <cstdint>

#include "offramp/core/dtype.hpp"
#include "offramp/core/shape.hpp"

namespace offramp::kernel {

enum class Unary : std::uint8_t;
struct Winograd;

/// C = act(A B + bias + residual), A and B in bfloat16, the rows of A given as in `Gemm`. Up to one element behind a
/// run may be read, and up to 15 runs at the same distance behind the last row; no row is left out.
struct Bf16Gemm {
  Index m = 0, n = 0, taps = 1, run = 0;
  const std::uint16_t* a = nullptr;
  Index lda = 0;
  const std::int32_t* offsets = nullptr;  ///< [m][taps] from `a`, none negative; null: row i starts at a + i * lda
  const std::uint16_t* b = nullptr;       ///< blocks of 16 columns, each [taps][run / 2, rounded up][16][2]
  const float* bias = nullptr;            ///< null, or n padded to 16
  const float* residual = nullptr;        ///< null, or m rows, `ldr` apart
  Index ldr = 0;
  float* c = nullptr;
  Index ldc = 0;
  Unary activation{};
  float alpha = 0, beta = 0;
  bool columns_outside = false;
};

/// C = A B with A (bfloat16) and C (float32) in blocks of 16 columns, as `BlockedGemm` has them.
struct Bf16BlockedGemm {
  Index planes = 1, a_plane = 0, b_plane = 0, c_plane = 0;  ///< how many, and elements between two of them
  Index m = 0, n = 0, k = 0;
  const std::uint16_t* a = nullptr;
  Index a_block = 0;                 ///< elements between two blocks of A
  const std::uint16_t* b = nullptr;  ///< blocks of 16 columns, each [k / 2, rounded up][16][2]
  float* c = nullptr;
  Index c_block = 0;
};

/// The kernels on bfloat16 of one instruction set.
struct Bf16Kernels {
  void (*gemm)(const Bf16Gemm&) noexcept;
  /// To the nearest bfloat16, ties to even; a NaN stays one.
  void (*convert)(const float* in, std::uint16_t* out, Index n) noexcept;
  /// As the kernels on floats, for tiles of 2 x 2 and 4 x 4 outputs.
  void (*winograd_input)(const Winograd&, const float* in, std::uint16_t* tiles) noexcept;
  void (*blocked_gemm)(const Bf16BlockedGemm&) noexcept;
  bool has_tiles;  ///< many times the speed of float32, not twice
};

constexpr Index bf16_packed_size(Index taps, Index run, Index n) noexcept {
  return taps * ((run + 1) / 2 * 2) * ((n + 15) / 16 * 16);
}

/// Packs element (tap, i, j) at b[(tap * run + i) * row_step + j * column_step], times `scale`.
inline void bf16_pack(const float* b, Index row_step, Index column_step, Index taps, Index run, Index n, float scale,
                      std::uint16_t* out) noexcept {
  for (Index j0 = 0; j0 < n; j0 += 16) {
    for (Index t = 0; t < taps; ++t) {
      for (Index i0 = 0; i0 < run; i0 += 2) {
        for (Index j = j0; j < j0 + 16; ++j) {
          for (Index i = i0; i < i0 + 2; ++i)
            *out++ = i < run && j < n ? float_to_bf16(b[(t * run + i) * row_step + j * column_step] * scale)
                                      : std::uint16_t{0};
        }
      }
    }
  }
}

}  // namespace offramp::kernel

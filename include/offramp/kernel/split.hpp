/// @file split.hpp
/// A matrix product cut into parts for several threads.
#pragma once

#include <algorithm>

#include "offramp/core/executor.hpp"
#include "offramp/kernel/kernels.hpp"

namespace offramp::kernel {

/// Multiply-adds below which a second thread does not pay for waking it.
inline constexpr Index least_parallel_macs = 100'000;

/// Part `i` of `parts` of n things in steps of `step`: [first, last).
struct Range {
  Index first = 0, last = 0;
};
constexpr Range part_of(Index n, Index step, Index parts, Index i) noexcept {
  const Index steps = (n + step - 1) / step;
  return {std::min(n, steps * i / parts * step), std::min(n, steps * (i + 1) / parts * step)};
}

/// These rows of C.
inline Gemm rows_of(Gemm g, Range r) noexcept {
  g.m = r.last - r.first;
  if (g.offsets) {
    g.offsets += r.first * g.taps;
  } else {
    g.a += r.first * g.lda;
  }
  if (g.residual) g.residual += r.first * g.ldr;
  g.c += r.first * g.ldc;
  return g;
}

/// These columns of C; `first` is a multiple of 16.
inline Gemm columns_of(Gemm g, Range r) noexcept {
  g.n = r.last - r.first;
  g.b += r.first * g.taps * g.run;
  if (g.bias) g.bias += r.first;
  if (g.residual) g.residual += r.first;
  g.c += r.first;
  return g;
}

/// The product, by as many threads as pay.
inline void gemm(const Gemm& g, const Kernels& kernels, ExecutorRef executor) noexcept {
  const Index threads = executor.threads();
  if (threads == 1 || g.m * g.n * g.taps * g.run < least_parallel_macs) return kernels.gemm(g);
  constexpr Index tile = 8;
  // Rows share B and columns share A: cut where the parts come out even, rows first.
  if (g.m >= 4 * threads * tile || padded_columns(g.n) / column_block < 2 * threads) {
    const Index parts = std::min((g.m + tile - 1) / tile, 4 * threads);
    executor.each(parts, [&](Index i) {
      const Range r = part_of(g.m, tile, parts, i);
      if (r.first < r.last) kernels.gemm(rows_of(g, r));
    });
  } else {
    const Index step = 3 * column_block;
    const Index parts = std::min((g.n + step - 1) / step, 4 * threads);
    executor.each(parts, [&](Index i) {
      const Range r = part_of(g.n, step, parts, i);
      if (r.first < r.last) kernels.gemm(columns_of(g, r));
    });
  }
}

/// The same in bfloat16.
inline void bf16_gemm(const Bf16Gemm& g, const Kernels& kernels, ExecutorRef executor) noexcept {
  const Index threads = executor.threads();
  if (threads == 1 || g.m * g.n * g.taps * g.run < 4 * least_parallel_macs) return kernels.bf16->gemm(g);
  const bool by_rows = g.m >= 64 * threads || padded_columns(g.n) / column_block < 2 * threads;
  const Index n = by_rows ? g.m : g.n, step = by_rows ? 16 : 3 * column_block;
  const Index parts = std::min((n + step - 1) / step, 4 * threads);
  executor.each(parts, [&](Index i) {
    const Range r = part_of(n, step, parts, i);
    if (r.first >= r.last) return;
    Bf16Gemm part = g;
    if (by_rows) {
      part.m = r.last - r.first;
      if (g.offsets) {
        part.offsets += r.first * g.taps;
      } else {
        part.a += r.first * g.lda;
      }
      part.c += r.first * g.ldc;
      if (g.residual) part.residual += r.first * g.ldr;
    } else {
      part.n = r.last - r.first;
      part.b += r.first * g.taps * ((g.run + 1) / 2 * 2);
      part.c += r.first;
      if (g.bias) part.bias += r.first;
      if (g.residual) part.residual += r.first;
    }
    kernels.bf16->gemm(part);
  });
}

/// The same of bytes.
inline void integer_gemm(const IntegerGemm& g, const Kernels& kernels, ExecutorRef executor) noexcept {
  const Index threads = executor.threads();
  if (threads == 1 || g.m * g.n * g.taps * g.run < 4 * least_parallel_macs) return kernels.integer->gemm(g);
  constexpr Index tile = 8;
  const Index size = g.output.stores_real ? 4 : 1;
  const auto* residual = static_cast<const std::uint8_t*>(g.output.residual);
  auto* c = static_cast<std::uint8_t*>(g.c);
  const bool by_rows = g.m >= 4 * threads * tile || padded_columns(g.n) / column_block < 2 * threads;
  const Index n = by_rows ? g.m : g.n, step = by_rows ? tile : 3 * column_block;
  const Index parts = std::min((n + step - 1) / step, 4 * threads);
  executor.each(parts, [&](Index i) {
    const Range r = part_of(n, step, parts, i);
    if (r.first >= r.last) return;
    IntegerGemm part = g;
    if (by_rows) {
      part.m = r.last - r.first;
      if (g.offsets) {
        part.offsets += r.first * g.taps;
      } else {
        part.a += r.first * g.lda;
      }
      part.c = c + r.first * g.ldc * size;
      if (residual) part.output.residual = residual + r.first * g.output.ldr;
    } else {
      part.n = r.last - r.first;
      part.b += r.first * g.taps * ((g.run + 3) / 4 * 4);
      part.bias += r.first;
      part.output.scale += r.first;
      part.c = c + r.first * size;
      if (residual) part.output.residual = residual + r.first;
    }
    kernels.integer->gemm(part);
  });
}

}  // namespace offramp::kernel

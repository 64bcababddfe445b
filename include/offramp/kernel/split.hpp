/// @file split.hpp
/// A matrix product cut into parts for several threads.
#pragma once

#include <algorithm>

#include "offramp/core/executor.hpp"
#include "offramp/kernel/kernels.hpp"

namespace offramp::kernel {

/// Multiply-adds below which a second thread does not pay for waking it, and those of products of few rows, which take
/// as long as their weights need to arrive.
inline constexpr Index least_parallel_macs = 400'000, least_parallel_weights = least_parallel_macs / 4;
/// Bytes of a copy below which it does not either.
inline constexpr Index least_parallel_bytes = 128 * 1024;
constexpr bool copy_pays(Index bytes) noexcept {
  return bytes >= least_parallel_bytes;
}

/// Part `i` of `parts` of n things in steps of `step`: [first, last).
struct Range {
  Index first = 0, last = 0;
};
constexpr Range part_of(Index n, Index step, Index parts, Index i) noexcept {
  const Index steps = (n + step - 1) / step;
  return {std::min(n, steps * i / parts * step), std::min(n, steps * (i + 1) / parts * step)};
}

/// Calls f(range) for the parts of n things that `executor` shares among its threads: two for each, as every part
/// reads the other side of a product anew; all at once where there is one thread.
template <class F>
void each_range(ExecutorRef executor, Index n, Index step, F&& f) noexcept {
  const Index threads = executor.threads(), parts = std::min((n + step - 1) / step, threads == 1 ? 1 : 2 * threads);
  executor.each(parts, [&](Index i) {
    const Range r = part_of(n, step, parts, i);
    if (r.first < r.last) f(r);
  });
}

/// Lets a product of any type read only the rows of A that make these rows of C.
template <class G>
void take_rows(G& g, Range r) noexcept {
  g.m = r.last - r.first;
  if (g.offsets) {
    g.offsets += r.first * g.taps;
  } else {
    g.a += r.first * g.lda;
  }
}

/// These rows of C.
template <class G>
G rows_of(G g, Range r) noexcept {
  take_rows(g, r);
  if (g.residual) g.residual += r.first * g.ldr;
  g.c += r.first * g.ldc;
  return g;
}
inline IntegerGemm rows_of(IntegerGemm g, Range r) noexcept {
  take_rows(g, r);
  if (g.output.residual)
    g.output.residual = static_cast<const std::uint8_t*>(g.output.residual) + r.first * g.output.ldr;
  g.c = static_cast<std::uint8_t*>(g.c) + r.first * g.ldc * (g.output.stores_real ? 4 : 1);
  return g;
}

/// Elements of B for each tap and column: runs are packed in pairs of halves and fours of bytes.
constexpr Index packed_run(const Gemm& g) noexcept {
  return g.run;
}
constexpr Index packed_run(const Bf16Gemm& g) noexcept {
  return (g.run + 1) / 2 * 2;
}
constexpr Index packed_run(const IntegerGemm& g) noexcept {
  return (g.run + 3) / 4 * 4;
}

/// These columns of C; `first` is a multiple of 16.
template <class G>
G columns_of(G g, Range r) noexcept {
  g.n = r.last - r.first;
  g.b += r.first * g.taps * packed_run(g);
  if (g.bias) g.bias += r.first;
  if (g.residual) g.residual += r.first;
  g.c += r.first;
  return g;
}
inline IntegerGemm columns_of(IntegerGemm g, Range r) noexcept {
  g.n = r.last - r.first;
  g.b += r.first * g.taps * packed_run(g);
  g.bias += r.first;
  g.output.scale += r.first;
  if (g.output.residual) g.output.residual = static_cast<const std::uint8_t*>(g.output.residual) + r.first;
  g.c = static_cast<std::uint8_t*>(g.c) + r.first * (g.output.stores_real ? 4 : 1);
  return g;
}

/// A product by as many threads as pay. Rows share B and columns share A: cut where the parts come out even, rows
/// first. `speed` multiply-adds take the time of one in float32; rows go in steps of `tile`, at least `rows` a thread,
/// columns in steps of `blocks` blocks.
template <class G, class Run>
void split_product(const G& g, ExecutorRef executor, Index speed, Index tile, Index rows, Index blocks,
                   Run&& run) noexcept {
  const Index threads = executor.threads(), least = g.m < 8 ? least_parallel_weights : least_parallel_macs;
  if (threads == 1 || g.m * g.n * g.taps * g.run < speed * least) return run(g);
  if (g.m >= rows * threads || padded_columns(g.n) / column_block < 2 * threads) {
    each_range(executor, g.m, tile, [&](Range r) { run(rows_of(g, r)); });
  } else {
    each_range(executor, g.n, blocks * column_block, [&](Range r) { run(columns_of(g, r)); });
  }
}

inline void gemm(const Gemm& g, const Kernels& kernels, ExecutorRef executor) noexcept {
  split_product(g, executor, 1, 24, 32, 4, [&](const Gemm& part) { kernels.gemm(part); });
}
/// The same with columns where they lie; each thread reads its own.
inline void dot_gemm(const DotGemm& g, const Kernels& kernels, ExecutorRef executor) noexcept {
  if (executor.threads() == 1 || g.m * g.n * g.k < least_parallel_weights) return kernels.dot_gemm(g);
  each_range(executor, g.n, 6, [&](Range r) {
    DotGemm part = g;
    part.n = r.last - r.first;
    part.b += r.first * g.k, part.c += r.first;
    if (g.bias) part.bias += r.first;
    if (g.residual) part.residual += r.first;
    kernels.dot_gemm(part);
  });
}
/// The same in bfloat16.
inline void bf16_gemm(const Bf16Gemm& g, const Kernels& kernels, ExecutorRef executor) noexcept {
  split_product(g, executor, 2, 16, 64, 3, [&](const Bf16Gemm& part) { kernels.bf16->gemm(part); });
}
/// The same of bytes.
inline void integer_gemm(const IntegerGemm& g, const Kernels& kernels, ExecutorRef executor) noexcept {
  split_product(g, executor, 4, 8, 32, 3, [&](const IntegerGemm& part) { kernels.integer->gemm(part); });
}

}  // namespace offramp::kernel

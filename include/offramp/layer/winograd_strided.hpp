/// @file winograd_strided.hpp
/// Convolution 3 x 3 with stride 2 by Winograd's minimal filtering.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>

#include "offramp/core/executor.hpp"
#include "offramp/core/tensor.hpp"
#include "offramp/kernel/cost.hpp"
#include "offramp/kernel/isa.hpp"
#include "offramp/kernel/kernels.hpp"
#include "offramp/kernel/pack.hpp"
#include "offramp/kernel/split.hpp"
#include "offramp/layer/fused.hpp"
#include "offramp/layer/window.hpp"
#include "offramp/layer/winograd.hpp"

namespace offramp {

/// F(m x m, 3 x 3) with stride 2: (2 m + 1)^2 multiplications for m x m outputs instead of 9 m^2, 0.69 of them for
/// tiles of 2 x 2, 0.56 for tiles of 4 x 4 (see `kernel::WinogradStrided`). Tiles go through in blocks, of which a row
/// of points stays in cache. An infinity or a NaN in the input reaches all outputs of its tiles.
class WinogradStridedPlan {
 public:
  WinogradStridedPlan() = default;

  static bool fits(const Window& w, Index in_channels, Index out_channels, Index group) noexcept {
    return WinogradPlan::fits(w, group, 2) && in_channels % kernel::column_block == 0 &&
           out_channels % kernel::column_block == 0;
  }

  /// `m` is 2 or 4, `weights` are [out_channels][in_channels][3][3].
  WinogradStridedPlan(const Window& w, Index in_channels, Index out_channels, Index m, const float* weights)
      : in_channels_(in_channels), packed_(kernel::packed_size(in_channels, out_channels)) {
    t_.m = m;
    t_.in_h = w.in[1], t_.in_w = w.in[2], t_.out_h = w.out[1], t_.out_w = w.out[2];
    t_.pad_top = w.begin[1], t_.pad_left = w.begin[2];
    t_.pixel = t_.channels = out_channels;
    weights_ = Tensor(DType::f32, {points() * points(), packed_});
    pack(weights);
  }

  /// Cycles that a batch is expected to take: products, vectors of the transformations, and the way of the weights,
  /// once to the core and again for every block of tiles.
  static double cycles(const Window& w, Index in_channels, Index out_channels, Index m, Index batch, Index lanes,
                       Index threads = 1) noexcept {
    // Of the peak, next to `product_share` of the indirect product; of a point and a vector. Measured.
    constexpr double share = 0.72, input = 7.5, output = 5.2;
    const Index side = kernel::WinogradStrided::side(m), points = side * side;
    const auto tiles = static_cast<double>(batch * ((w.out[1] + m - 1) / m) * ((w.out[2] + m - 1) / m)) /
                       static_cast<double>(threads),
               macs = static_cast<double>(points * in_channels * out_channels);
    const auto vectors = [&](Index channels) { return static_cast<double>((channels + lanes - 1) / lanes); };
    const double transformations =
                     static_cast<double>(points) * (input * vectors(in_channels) + output * vectors(out_channels)),
                 work = tiles * (macs / (share * multiply_adds_per_cycle(lanes)) + transformations), bytes = 4 * macs;
    const double blocks = tiles / static_cast<double>(usual_tiles(m, in_channels, out_channels));
    return kernel::cycles_with_weights(work, bytes) + std::max(0.0, blocks - 1) * kernel::cycles_to_repeat(bytes);
  }

  std::string text() const {
    const std::string m = std::to_string(t_.m);
    return "winograd F(" + m + "x" + m + ",3x3) stride 2";
  }
  std::span<const std::byte> packed() const noexcept { return weights_.raw(); }

  /// FLOPs of the transformations of tiles.
  Index transformed(Index batch) const noexcept {
    struct Count {
      Index terms, b, a, sums;  // of B^T down the columns; of B^T and A^T along a row; of A^T down the columns
    };
    const Count c = t_.m == 2 ? Count{7, 2, 4, 12} : Count{20, 14, 15, 96};
    return batch * tiles() * (points() * (2 * c.terms + c.b) * in_channels_ + (points() * c.a + c.sums) * t_.channels);
  }
  /// FLOPs of products and transformations, without bias and tail.
  Index executed(Index batch) const noexcept {
    return 2 * batch * tiles() * points() * points() * in_channels_ * t_.channels + transformed(batch);
  }

  /// Whether threads share output channels, each with a transformation of its own of the input: where the tiles are too
  /// few to be shared.
  bool shares_channels(Index batch, Index threads) const noexcept {
    constexpr Index few = 2 * kernel::BlockedGemm::least_rows;  // measured: 4 tiles for two threads, not 16
    return threads > 1 && t_.channels >= threads * kernel::column_block && batch * tiles() < few * threads;
  }

  std::size_t scratch_bytes(Index batch, Index threads) const noexcept {
    return static_cast<std::size_t>(threads * slot(std::min(batch * tiles(), block()))) * sizeof(float);
  }

  /// All [batch][h][w][channels]; `bias` and `residual` may be null; `next` as in `OperationRun`.
  void forward(const float* in, const float* bias, const float* residual, float* out, Index batch,
               const FusedTail& tail, std::byte* scratch, const kernel::Kernels& kernels, ExecutorRef executor,
               std::span<const std::byte> next = {}) const noexcept {
    const Index all = batch * tiles(), most = block(), memory = slot(std::min(all, most));
    const Index panels = t_.channels / kernel::column_block;
    const bool pays = all * points() * points() * in_channels_ * t_.channels >= kernel::least_parallel_macs;
    const Index threads = pays ? executor.threads() : 1;
    const bool by_channels = shares_channels(batch, threads), is_inside = kernel::is_cheap(tail.activation);
    const Index parts = std::min(threads, by_channels ? panels : all);
    executor.each(parts, [&](Index i) {
      const kernel::Range own = by_channels ? kernel::part_of(panels, 1, parts, i) : kernel::Range{0, panels},
                          some = by_channels ? kernel::Range{0, all} : kernel::part_of(all, 1, parts, i);
      const Index channel = own.first * kernel::column_block;
      kernel::WinogradStrided g;
      g.tiles = t_;
      g.tiles.channels = (own.last - own.first) * kernel::column_block;
      g.tiles.bias = bias ? bias + channel : nullptr, g.tiles.residual = residual ? residual + channel : nullptr;
      if (is_inside) g.tiles.activation = tail.activation, g.tiles.alpha = tail.alpha, g.tiles.beta = tail.beta;
      g.in = in, g.in_channels = in_channels_, g.out = out + channel;
      g.weights = weights_.view().f32() + channel * in_channels_, g.weight_plane = packed_;
      g.memory = reinterpret_cast<float*>(scratch) + i * memory, g.planes = points();
      for (Index first = some.first; first < some.last; first += most) {
        g.tiles.first = first, g.tiles.count = std::min(most, some.last - first);
        g.block = rows(g.tiles.count) * kernel::column_block;
        g.in_plane = plane(g.tiles.count, in_channels_), g.out_plane = plane(g.tiles.count, g.tiles.channels);
        if (some.last - first <= most) g.ahead = next.data(), g.ahead_bytes = static_cast<Index>(next.size());
        kernels.winograd_strided(g);
      }
    });
    if (is_inside) return;
    const Index n = batch * t_.out_h * t_.out_w * t_.channels;
    kernel::each_range(pays ? executor : ExecutorRef(), n, kernel::column_block, [&](kernel::Range r) {
      kernels.unary(tail.activation, out + r.first, out + r.first, r.last - r.first, tail.alpha, tail.beta);
    });
  }

 private:
  Index points() const noexcept { return kernel::WinogradStrided::side(t_.m); }  // along each axis
  Index tiles() const noexcept { return t_.tiles_down() * t_.tiles_across(); }

  static Index rows(Index tiles) noexcept { return std::max(tiles, kernel::BlockedGemm::least_rows); }
  // Planes a multiple of 4 KB apart would share the sets of L1.
  static Index plane(Index tiles, Index channels) noexcept { return rows(tiles) * channels + kernel::column_block; }
  // Floats of a row of points of so many tiles.
  Index slot(Index tiles) const noexcept { return points() * (plane(tiles, in_channels_) + plane(tiles, t_.channels)); }

  static Index usual_tiles(Index m, Index in_channels, Index out_channels) noexcept {
    const Index side = kernel::WinogradStrided::side(m), bytes = 4 * side * (in_channels + out_channels);
    return std::clamp<Index>(512 * 1024 / bytes / 8 * 8, 16, 256);
  }
  Index block() const noexcept { return usual_tiles(t_.m, in_channels_, t_.channels); }

  // G g G^T of every filter, in double, packed for the matrix kernel: a plane for each point.
  void pack(const float* weights) {
    static constexpr double g2[5][3] = {{1, 0, 0}, {1, 0, 1}, {0, 0, 1}, {0, 1, 0}, {0, 1, 0}};
    static constexpr double g4[9][3] = {{1. / 2, 0, 0},
                                        {-1. / 2, 0, -1. / 2},
                                        {-1. / 6, 0, 1. / 6},
                                        {1. / 6, 0, 1. / 3},
                                        {0, 0, 1},
                                        {0, 1, 0},
                                        {0, 1, 0},
                                        {0, 1, 0},
                                        {0, 1, 0}};
    const double(*g)[3] = t_.m == 2 ? g2 : g4;
    auto* to = static_cast<float*>(weights_.mutable_data());
    for (Index o = 0; o < t_.channels; ++o) {
      for (Index c = 0; c < in_channels_; ++c) {
        float* at =
            to + (o / kernel::column_block * in_channels_ + c) * kernel::column_block + o % kernel::column_block;
        transform_filter(g, points(), weights + (o * in_channels_ + c) * 9,
                         [&](Index i, Index j, double v) { at[(i * points() + j) * packed_] = static_cast<float>(v); });
      }
    }
  }

  Index in_channels_ = 0, packed_ = 0;
  kernel::Winograd t_;
  Tensor weights_;
};

}  // namespace offramp

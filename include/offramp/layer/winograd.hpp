/// @file winograd.hpp
/// Convolution 3 x 3 with stride 1 by Winograd's minimal filtering.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "offramp/core/dtype.hpp"
#include "offramp/core/tensor.hpp"
#include "offramp/kernel/bf16.hpp"
#include "offramp/kernel/cost.hpp"
#include "offramp/kernel/isa.hpp"
#include "offramp/kernel/pack.hpp"
#include "offramp/kernel/split.hpp"
#include "offramp/layer/conv_method.hpp"
#include "offramp/layer/fused.hpp"
#include "offramp/layer/window.hpp"

namespace offramp {

/// The matrix G of F(4, 3).
inline constexpr double winograd_filter_4[6][3] = {{1. / 4, 0, 0},
                                                   {-1. / 6, -1. / 6, -1. / 6},
                                                   {-1. / 6, 1. / 6, -1. / 6},
                                                   {1. / 24, 1. / 12, 1. / 6},
                                                   {1. / 24, -1. / 12, 1. / 6},
                                                   {0, 0, 1}};

/// G g G^T of a filter 3 x 3 in double, for a G of so many points: put(i, j, value) for each of them.
template <class Put>
void transform_filter(const double (*g)[3], Index points, const float* filter, Put&& put) {
  for (Index i = 0; i < points; ++i) {
    double half[3];
    for (int x = 0; x < 3; ++x)
      half[x] = g[i][0] * static_cast<double>(filter[x]) + g[i][1] * static_cast<double>(filter[3 + x]) +
                g[i][2] * static_cast<double>(filter[6 + x]);
    for (Index j = 0; j < points; ++j) put(i, j, half[0] * g[j][0] + half[1] * g[j][1] + half[2] * g[j][2]);
  }
}

/// F(m x m, 3 x 3) of Lavin and Gray (CVPR 2016): a tile of m x m outputs takes (m + 2)^2 multiplications instead of
/// 9 m^2, between a transformation of the input and one of the output. The tiles of a batch are cut into blocks whose
/// transforms stay in L2. An infinity or a NaN in the input reaches all outputs of its tiles. With `halves`,
/// transformed inputs and weights are bfloat16 and their products, summed in float32, go twice as fast: outputs are
/// within 0.3 % (2 x 2) or 2 % (4 x 4) of the exact ones, relative to their root mean square. With `plain_weights`,
/// what is read are the nine weights of a filter instead of the 36 that 4 x 4 tiles multiply: where tiles are few, the
/// way of those from L3 takes longer than to make them anew for every four tiles.
///
/// Threads do not meet before the end: each has a part of the tiles, or all of them and a part of the output channels,
/// and transforms what it needs of the input itself. What it transforms and multiplies stays in its own L2.
class WinogradPlan {
 public:
  WinogradPlan() = default;

  static bool fits(const Window& w, Index group, Index stride = 1) noexcept {
    return group == 1 && w.in[0] == 1 && w.out[0] == 1 && w.kernel == std::array<Index, 3>{1, 3, 3} &&
           w.stride == std::array<Index, 3>{1, stride, stride} && w.dilation == std::array<Index, 3>{1, 1, 1} &&
           w.begin[0] == 0 && w.end[0] == 0;
  }

  /// `weights` is [out_channels][in_channels][3][3]; `lanes` as the kernels of `forward` have.
  WinogradPlan(const Window& w, Index in_channels, Index out_channels, const ConvMethod& method, const float* weights,
               Index lanes = 16)
      : job_{method, in_channels, out_channels, lanes, share_of_copied_tiles(w, method.m)} {
    t_.m = method.m;
    t_.in_h = w.in[1], t_.in_w = w.in[2], t_.out_h = w.out[1], t_.out_w = w.out[2];
    t_.pad_top = w.begin[1], t_.pad_left = w.begin[2];
    packed_ = method.halves ? kernel::bf16_packed_size(1, in_channels, out_channels)
                            : kernel::packed_size(in_channels, out_channels);
    weights_ = Tensor(method.halves ? DType::bf16 : DType::f32, {method.plain_weights ? 9 : t_.points(), packed_});
    method.plain_weights ? pack_plain(weights) : method.halves ? pack<std::uint16_t>(weights) : pack<float>(weights);
  }

  /// Whether all tiles of 4 x 4 outputs meet weights that are transformed once: plain weights pay for that only.
  static bool has_few_tiles(const Window& w, Index batch) noexcept {
    return batch * tiles_of(w, 4) <= kernel::WinogradProducts::rows;
  }

  /// Cycles that a batch is expected to take: products, the vector instructions of the transformations, and the way of
  /// the weights, once to the core and again for every block of tiles. Large tiles lose where the weights are many and
  /// the pixels few.
  static double cycles(const Window& w, Index in_channels, Index out_channels, const ConvMethod& method, Index batch,
                       Index lanes, Index threads = 1) noexcept {
    const Job job{method, in_channels, out_channels, lanes, share_of_copied_tiles(w, method.m)};
    return parts_of(job, batch * tiles_of(w, method.m), threads).cycles;
  }

  /// How threads share a convolution, and the cycles that each of them takes.
  struct Parts {
    Index of_tiles = 1, of_channels = 1;
    double cycles = 0;

    Index count() const noexcept { return of_tiles * of_channels; }
  };
  Parts parts(Index batch, Index threads) const noexcept { return parts_of(job_, batch * tiles(), threads); }

  std::string text() const {
    const std::string m = std::to_string(t_.m);
    return (job_.method.halves ? "bf16 winograd F(" : "winograd F(") + m + "x" + m + ",3x3)" +
           (job_.method.plain_weights ? " of plain weights"
            : is_narrow()             ? " in L1"
                                      : "");
  }
  Index tiles() const noexcept { return t_.tiles_down() * t_.tiles_across(); }
  std::span<const std::byte> packed() const noexcept { return weights_.raw(); }

  /// FLOPs of the transformations of tiles.
  Index transformed(Index batch) const noexcept {
    const auto n = static_cast<std::size_t>(t_.m / 2 - 1);
    static constexpr std::array<Index, 3> input{4, 20, 44}, output{4, 12, 34};        // of one column of a tile
    const Index points = t_.m + 2, columns = points + (is_narrow() ? t_.m : points);  // neighbours may share two
    return batch * tiles() * (columns * input[n] * job_.in_channels + (points + t_.m) * output[n] * job_.out_channels);
  }
  /// FLOPs of products and transformations, without bias and tail.
  Index executed(Index batch) const noexcept {
    const Index all = batch * tiles(), weights = job_.in_channels * kernel::padded_columns(job_.out_channels);
    Index products = 2 * all * t_.points() * weights;
    if (job_.method.plain_weights) {  // 102 to transform the weights of a pair of channels
      const Index rows = kernel::WinogradProducts::rows;
      products = strip_tiles(all) / rows * (2 * rows * t_.points() + 102) * weights;
    }
    return products + transformed(batch);
  }

  std::size_t scratch_bytes(Index batch, Index threads) const noexcept {
    const Index all = batch * tiles();
    return static_cast<std::size_t>(threads * slot(std::min(most_tiles(job_), all))) * sizeof(float);
  }

  /// All [batch][h][w][channels]; `bias` and `residual` may be null, the latter is so in front of a pooling; `next` as
  /// in `OperationRun`.
  void forward(const float* in, const float* bias, const float* residual, float* out, Index batch,
               const FusedTail& tail, std::byte* scratch, const kernel::Kernels& kernels, ExecutorRef executor,
               std::span<const std::byte> next = {}) const noexcept {
    kernel::Winograd output = t_;
    output.bias = bias, output.residual = residual;
    output.activation = tail.activation, output.alpha = tail.alpha, output.beta = tail.beta;
    output.pooling = tail.pooling;
    const Index all = batch * tiles();
    const Parts shared = executor.threads() == 1 ? Parts{} : parts(batch, executor.threads());
    const Index panels = kernel::padded_columns(job_.out_channels) / kernel::column_block,
                own_memory = slot(std::min(most_tiles(job_), all));
    executor.each(shared.count(), [&](Index i) {
      const kernel::Range tiles = kernel::part_of(all, 1, shared.of_tiles, i / shared.of_channels),
                          own = kernel::part_of(panels, 1, shared.of_channels, i % shared.of_channels);
      const Index block = block_of(tiles.last - tiles.first, job_);
      float* memory = reinterpret_cast<float*>(scratch) + i * own_memory;
      if (is_narrow() && kernels.winograd_narrow && kernel::is_cheap(tail.activation) &&
          tail.pooling == kernel::Pooling::none)
        return run_narrow(in, out, output, tiles, memory, kernels, next);
      for (Index first = tiles.first; first < tiles.last; first += block) {
        const Index last = std::min(first + block, tiles.last);
        run_block(in, out, output, {first, last}, own, memory, kernels,
                  last == tiles.last ? next : std::span<const std::byte>());
      }
    });
  }

 private:
  // What is to be done, besides the tiles, and what its cost depends on.
  struct Job {
    ConvMethod method;
    Index in_channels = 0, out_channels = 0, lanes = 16;
    double copied = 0;  // share of the tiles

    Index points() const noexcept { return (method.m + 2) * (method.m + 2); }
  };

  static Parts parts_of(const Job& job, Index tiles, Index threads) noexcept {
    // To wake threads and to wait for the last; for a byte of the input that another thread has written. Measured.
    constexpr double meeting = 12000, foreign = 1.25;
    Parts best{1, 1, cycles_of(job, tiles, job.out_channels)};
    const Index panels = kernel::padded_columns(job.out_channels) / kernel::column_block;
    for (Index n = 1; n <= threads && threads > 1; ++n) {
      if (threads % n != 0 || n > panels || threads / n > tiles) continue;
      const Index some = (tiles + threads / n - 1) / (threads / n),
                  channels = std::min((panels + n - 1) / n * kernel::column_block, job.out_channels);
      const auto read = static_cast<double>(some * job.method.m * job.method.m * job.in_channels) * sizeof(float);
      const double cycles = meeting + foreign * read * static_cast<double>(n - 1) / static_cast<double>(n) +
                            cycles_of(job, some, channels);
      if (cycles < best.cycles) best = {threads / n, n, cycles};
    }
    return best;
  }

  // Of one thread.
  static double cycles_of(const Job& job, Index tiles, Index out_channels) noexcept {
    const ConvMethod& method = job.method;
    const Index points = job.points(), block = block_of(tiles, job), blocks = (tiles + block - 1) / block;
    const auto n = static_cast<std::size_t>(method.m / 2 - 1);
    // Of a point and a vector, measured; a tile that reaches over an edge by more than a pixel is copied first.
    static constexpr std::array<double, 3> input{4.8, 4.7, 5.0}, output{3.7, 4.4, 7.5};
    constexpr double copied = 2;
    const double weights = static_cast<double>(points * job.in_channels * kernel::padded_columns(out_channels));
    const double rate = method.halves ? bf16_multiply_adds_per_cycle() : multiply_adds_per_cycle(job.lanes),
                 bytes = (method.halves ? 2 : 4) * weights;
    const auto vectors = [&](Index channels) { return static_cast<double>((channels + job.lanes - 1) / job.lanes); };
    const double transformations =
        static_cast<double>(tiles * points) *
        ((input[n] + job.copied * copied) * vectors(job.in_channels) + output[n] * vectors(out_channels));
    if (method.plain_weights) {
      // Of the peak, measured: the products of six points with four tiles take 34 operations, not 24.
      const double share = 0.9 * 24 / 34;
      const double products = static_cast<double>(strip_tiles(tiles)) * weights / (share * rate);
      return kernel::cycles_with_weights(products + transformations, bytes / 4);
    }
    const double work = static_cast<double>(tiles) * weights / (kernel::winograd_share * rate) + transformations;
    return kernel::cycles_with_weights(work, bytes) + static_cast<double>(blocks - 1) * kernel::cycles_to_repeat(bytes);
  }

  static Index tiles_of(const Window& w, Index m) noexcept {
    return ((w.out[1] + m - 1) / m) * ((w.out[2] + m - 1) / m);
  }
  // Those that reach beyond an image's padding of one pixel.
  static double share_of_copied_tiles(const Window& w, Index m) noexcept {
    Index near = 1;
    for (const std::size_t axis : {std::size_t{1}, std::size_t{2}}) {
      const Index tiles = (w.out[axis] + m - 1) / m, end = tiles * m + 2 - w.begin[axis];
      near *= std::max<Index>(0, tiles - (w.begin[axis] > 1) - (end > w.in[axis] + 1));
    }
    return 1 - static_cast<double>(near) / static_cast<double>(tiles_of(w, m));
  }
  // Tiles go through in blocks: as many as keep both transforms in half of a usual L2, and enough to read the weights
  // seldom; rather one that fills L2 than two.
  static Index usual_tiles(const Job& job) noexcept {
    const Index least = job.in_channels * job.out_channels > Index{1} << 15 ? 64 : 24;
    return std::clamp<Index>(512 * 1024 / bytes_of_tile(job) / 8 * 8, least, 256);
  }
  static Index most_tiles(const Job& job) noexcept {
    const Index usual = usual_tiles(job);
    return std::clamp<Index>(1024 * 1024 / bytes_of_tile(job), usual, usual * 3 / 2);
  }
  static Index bytes_of_tile(const Job& job) noexcept {
    return job.points() * ((job.method.halves ? 2 : 4) * job.in_channels + 4 * job.out_channels);
  }
  static Index block_of(Index tiles, const Job& job) noexcept {
    if (tiles <= most_tiles(job)) return std::max<Index>(1, tiles);
    const Index usual = usual_tiles(job), blocks = (tiles + usual - 1) / usual;
    return (tiles + blocks - 1) / blocks;
  }
  // Floats of a block's transforms, the input's first.
  Index slot(Index tiles) const noexcept { return input_floats(tiles) + t_.points() * plane(tiles, job_.out_channels); }
  Index input_floats(Index tiles) const noexcept {
    const Index values = t_.points() * plane(tiles, job_.in_channels);
    return job_.method.halves ? values / 2 : values;
  }

  // What `WinogradNarrow` can do. Padding is of one pixel where tiles of 4 x 4 make all outputs.
  bool is_narrow() const noexcept {
    const auto reaches = [](Index in, Index out, Index before) {
      return out % 4 == 0 && before <= 1 && out + 2 - before <= in + 1;
    };
    return job_.method.m == 4 && !job_.method.halves && !job_.method.plain_weights &&
           job_.lanes == kernel::column_block && job_.in_channels == kernel::column_block &&
           job_.out_channels == kernel::column_block && reaches(t_.in_h, t_.out_h, t_.pad_top) &&
           reaches(t_.in_w, t_.out_w, t_.pad_left);
  }

  void run_narrow(const float* in, float* out, const kernel::Winograd& output, kernel::Range tiles, float* memory,
                  const kernel::Kernels& kernels, std::span<const std::byte> next) const noexcept {
    constexpr Index together = kernel::WinogradNarrow::together, block = kernel::column_block;
    static_assert(kernel::WinogradNarrow::memory_floats <= 2 * 36 * (kernel::BlockedGemm::least_rows + 1) * block,
                  "the least that a slot has");
    kernel::WinogradNarrow g;
    g.tiles = output;
    g.tiles.first = tiles.first, g.tiles.count = tiles.last - tiles.first;
    g.tiles.pixel = g.tiles.channels = block;
    g.in = in, g.out = out, g.weights = weights_.view().f32(), g.memory = memory;
    g.ahead = next.data(), g.ahead_bytes = static_cast<Index>(next.size());
    g.planes = t_.points() * ((g.tiles.count + together - 1) / together);
    kernels.winograd_narrow(g);
  }

  // The outputs of these tiles in these blocks of 16 channels.
  void run_block(const float* in, float* out, kernel::Winograd output, kernel::Range tiles, kernel::Range panels,
                 float* left, const kernel::Kernels& kernels, std::span<const std::byte> next) const noexcept {
    kernel::Winograd input = t_;
    const Index count = tiles.last - tiles.first, channel = panels.first * kernel::column_block;
    input.first = output.first = tiles.first;
    input.count = output.count = count;
    input.pixel = input.channels = job_.in_channels;
    output.pixel = job_.out_channels;
    output.channels = std::min(panels.last * kernel::column_block, job_.out_channels) - channel;
    input.plane = plane(count, job_.in_channels), output.plane = plane(count, output.channels);
    input.block = output.block = rows(count) * kernel::column_block;
    if (output.bias) output.bias += channel;
    if (output.residual) output.residual += channel;
    auto* products = left + input_floats(count);
    auto* half = reinterpret_cast<std::uint16_t*>(left);
    job_.method.halves ? kernels.bf16->winograd_input(input, in, half) : kernels.winograd_input(input, in, left);
    if (job_.method.plain_weights) {
      kernel::WinogradProducts g;
      g.m = count, g.k = job_.in_channels;
      g.a = left, g.a_plane = input.plane, g.a_block = input.block;
      g.weights = weights_.view().f32() + channel * 9 * job_.in_channels;
      g.c = products, g.c_plane = output.plane, g.c_block = output.block;
      g.blocks = panels.last - panels.first;
      g.ahead = reinterpret_cast<const float*>(next.data());
      kernels.winograd_products(g);
    } else if (job_.method.halves) {
      multiply<kernel::Bf16BlockedGemm>(input, output, half, products, channel, kernels.bf16->blocked_gemm);
    } else {
      multiply<kernel::BlockedGemm>(input, output, left, products, channel, kernels.blocked_gemm, next);
    }
    kernels.winograd_output(output, products, out + channel);
  }

  // The products of all points, of tiles in the planes of `in` to those of `out`, whose channels begin at `channel`.
  template <class Product, class T>
  void multiply(const kernel::Winograd& in, const kernel::Winograd& out, const T* tiles, float* products, Index channel,
                void (*run)(const Product&) noexcept, std::span<const std::byte> next = {}) const noexcept {
    constexpr Index together = sizeof(float) / sizeof(T);
    Product g;
    if constexpr (requires { g.ahead; }) g.ahead = next.data(), g.ahead_bytes = static_cast<Index>(next.size());
    g.planes = t_.points(), g.a_plane = in.plane, g.b_plane = packed_, g.c_plane = out.plane;
    g.m = in.count, g.n = out.channels, g.k = job_.in_channels;
    g.a_block = in.block, g.c_block = out.block;
    g.a = tiles, g.c = products;
    g.b = static_cast<const T*>(weights_.data()) + channel * ((job_.in_channels + together - 1) / together * together);
    run(g);
  }

  static constexpr Index strip_tiles(Index tiles) noexcept {
    return (tiles + kernel::WinogradProducts::rows - 1) / kernel::WinogradProducts::rows *
           kernel::WinogradProducts::rows;
  }
  // Places for so many tiles.
  Index rows(Index tiles) const noexcept {
    return job_.method.plain_weights ? strip_tiles(tiles) : std::max(tiles, kernel::BlockedGemm::least_rows);
  }
  // Planes a multiple of 4 KB apart would share the sets of L1.
  Index plane(Index tiles, Index channels) const noexcept {
    return rows(tiles) * kernel::padded_columns(channels) + kernel::column_block;
  }

  // G g G^T of every 3 x 3 filter, in double, packed for the matrix kernel: a plane for each point, which has pairs of
  // input channels side by side where they are halves.
  template <class T>
  void pack(const float* weights) {
    static constexpr double g4[4][3] = {{1, 0, 0}, {.5, .5, .5}, {.5, -.5, .5}, {0, 0, 1}};
    static constexpr double g8[8][3] = {{1, 0, 0},
                                        {-2. / 9, -2. / 9, -2. / 9},
                                        {-2. / 9, 2. / 9, -2. / 9},
                                        {1. / 90, 1. / 45, 2. / 45},
                                        {1. / 90, -1. / 45, 2. / 45},
                                        {32. / 45, 16. / 45, 8. / 45},
                                        {32. / 45, -16. / 45, 8. / 45},
                                        {0, 0, 1}};
    const double(*g)[3] = t_.m == 2 ? g4 : t_.m == 4 ? winograd_filter_4 : g8;
    const Index points = t_.m + 2;
    auto* to = static_cast<T*>(weights_.mutable_data());
    constexpr Index together = sizeof(float) / sizeof(T);
    const Index rows = (job_.in_channels + together - 1) / together * together;
    std::fill_n(to, weights_.count(), T{});
    for (Index o = 0; o < job_.out_channels; ++o) {
      for (Index c = 0; c < job_.in_channels; ++c) {
        T* at = to + (o / kernel::column_block * rows + c / together * together) * kernel::column_block +
                o % kernel::column_block * together + c % together;
        transform_filter(g, points, weights + (o * job_.in_channels + c) * 9,
                         [&](Index i, Index j, double v) { at[(i * points + j) * packed_] = stored<T>(v); });
      }
    }
  }

  // Nine vectors for every input channel.
  void pack_plain(const float* weights) {
    auto* to = static_cast<float*>(weights_.mutable_data());
    std::fill_n(to, weights_.count(), 0.0f);
    for (Index o = 0; o < job_.out_channels; ++o) {
      for (Index c = 0; c < job_.in_channels; ++c) {
        for (Index tap = 0; tap < 9; ++tap)
          to[((o / kernel::column_block * job_.in_channels + c) * 9 + tap) * kernel::column_block +
             o % kernel::column_block] = weights[(o * job_.in_channels + c) * 9 + tap];
      }
    }
  }

  template <class T>
  static T stored(double v) noexcept {
    if constexpr (sizeof(T) == 2) {
      return float_to_bf16(static_cast<float>(v));
    } else {
      return static_cast<T>(v);
    }
  }

  Index packed_ = 0;
  Job job_;
  kernel::Winograd t_;
  Tensor weights_;
};

}  // namespace offramp

/// @file pool.hpp
/// Pooling: maximum, average, Lp, and each of them over the whole image.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "offramp/kernel/pack.hpp"
#include "offramp/layer/conv.hpp"
#include "offramp/layer/element.hpp"
#include "offramp/layer/grid.hpp"
#include "offramp/layer/operation.hpp"
#include "offramp/layer/quantize.hpp"

namespace offramp {

/// MaxPool, AveragePool, LpPool and their global forms.
class PoolOperation final : public Operation {
 public:
  PoolOperation(const Node& node, Index opset)
      : op_(node.op),
        global_(op_.starts_with("Global")),
        channels_last_(node.integer("offramp.channels_last", 0) != 0),
        window_(node),
        count_padding_(node.integer("count_include_pad", 0) != 0),
        column_major_(node.integer("storage_order", 0) != 0),
        p_(opset < 2 && node.find("p") == nullptr ? 2.0 : static_cast<double>(node.integer("p", 2))) {
    kind_ = op_.ends_with("MaxPool") ? Kind::max : op_.ends_with("AveragePool") ? Kind::average : Kind::lp;
  }

  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView& x = required_input(in, 0);
    OFFRAMP_REQUIRE(x.type == DType::f32 || (kind_ == Kind::max && (x.type == DType::u8 || x.type == DType::i8)),
                    "cannot take " + std::string(name_of(x.type)));
    require_rank(x, 3, global_ ? Shape::max_rank : 5, "input");
    if (global_) {
      Shape s = x.shape;
      for (int i = 2; i < s.rank(); ++i) s[channels_last_ ? i - 1 : i] = 1;
      OFFRAMP_REQUIRE(x.count() > 0, "input " + x.shape.text() + " is empty");
      set_output(out[0], x.type, s);
      return;
    }
    const Window w = window_.resolve(x.shape, channels_last_);
    const Shape s = w.output(x.shape, channels_of(x.shape, channels_last_), channels_last_);
    set_output(out[0], x.type, s);
    if (out.size() > 1) {
      OFFRAMP_REQUIRE(kind_ == Kind::max && !channels_last_, "only MaxPool has a second output");
      set_output(out[1], DType::i64, s);
    }
  }
  void prepare(std::span<const TensorView> in, const PrepareOptions&) override {
    if (!global_) plan_ = window_.resolve(in[0].shape, channels_last_);
  }
  Cost cost(std::span<const TensorView> in, std::span<const TensorView> out) const noexcept override {
    if (out[0].count() == 0) return {};
    const Index window = global_ ? in[0].count() / out[0].count() : window_.taps();
    return Cost::plain(out[0].count() * (kind_ == Kind::max       ? window - 1
                                         : kind_ == Kind::average ? window
                                                                  : 2 * window));
  }
  std::size_t scratch_bytes(std::span<const TensorView> in, std::span<const TensorView> out,
                            Index) const noexcept override {
    return vectorised(in[0], out) && !channels_last_
               ? static_cast<std::size_t>(image(in[0]) + image(out[0])) * sizeof(float) + 2 * alignment
               : 0;
  }

  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &y = run.out[0];
    if (y.count() == 0) return true;
    if (global_) {
      reduce_all(run);
    } else if (vectorised(x, run.out)) {
      vector_pool(run);
    } else if (channels_last_ && is_byte(x.type) && plan_.taps() <= most_byte_taps) {
      byte_pool(run);
    } else {
      plain_pool(run);
    }
    return true;
  }

 private:
  enum class Kind { max, average, lp };

  static Index image(const TensorView& x) noexcept { return x.shape[0] > 0 ? x.count() / x.shape[0] : 0; }
  bool vectorised(const TensorView& x, std::span<const TensorView> out) const noexcept {
    return !global_ && x.type == DType::f32 && kind_ != Kind::lp && x.shape.rank() <= 4 &&
           (out.size() < 2 || out[1].data == nullptr);
  }

  void reduce_all(const OperationRun& run) const noexcept {
    const TensorView &x = run.in[0], &y = run.out[0];
    const Index batch = x.shape[0], channels = channels_of(x.shape, channels_last_),
                pixels = x.count() / (batch * channels);
    if (kind_ == Kind::average && channels_last_) {
      for (Index i = 0; i < batch; ++i) {
        run.kernels.sum_rows(x.f32() + i * pixels * channels, y.as<float>() + i * channels, pixels, channels,
                             1 / static_cast<float>(pixels));
      }
      return;
    }
    if (kind_ == Kind::max && channels_last_ && x.type == DType::f32) {
      for (Index i = 0; i < batch; ++i)
        run.kernels.pool_cell(x.f32() + i * pixels * channels, 0, 1, pixels, channels, nullptr,
                              y.as<float>() + i * channels);
      return;
    }
    const Index step = channels_last_ ? channels : 1;
    for (Index i = 0; i < batch; ++i) {
      for (Index c = 0; c < channels; ++c) {
        const Index first = i * channels * pixels + (channels_last_ ? c : c * pixels);
        double v = kind_ == Kind::max ? -std::numeric_limits<double>::infinity() : 0;
        for (Index p = 0; p < pixels; ++p) v = accumulate(v, real_at(x, first + p * step));
        put_real(y, i * channels + c, finish(v, pixels));
      }
    }
  }

  double accumulate(double v, double x) const noexcept {
    if (kind_ == Kind::max) return v != v ? v : x > v || x != x ? x : v;
    return kind_ == Kind::average ? v + x : v + std::pow(std::fabs(x), p_);
  }
  double finish(double v, Index count) const noexcept {
    if (kind_ == Kind::average) return v / static_cast<double>(count > 0 ? count : 1);
    return kind_ == Kind::lp ? std::pow(v, 1 / p_) : v;
  }

  void vector_pool(const OperationRun& run) const noexcept {
    const TensorView &x = run.in[0], &y = run.out[0];
    const Window& w = plan_;
    kernel::Pool2d p;
    p.maximum = kind_ == Kind::max, p.count_padding = count_padding_;
    p.channels = channels_of(x.shape, channels_last_);
    p.in_h = w.in[1], p.in_w = w.in[2], p.out_h = w.out[1], p.out_w = w.out[2];
    p.kernel_h = w.kernel[1], p.kernel_w = w.kernel[2], p.stride_h = w.stride[1], p.stride_w = w.stride[2];
    p.dilation_h = w.dilation[1], p.dilation_w = w.dilation[2];
    p.pad_top = w.begin[1], p.pad_left = w.begin[2], p.pad_bottom = w.end[1], p.pad_right = w.end[2];
    const Index in_image = image(x), out_image = image(y);
    auto* in = reinterpret_cast<float*>(run.scratch);
    auto* out = in + (in_image + 15) / 16 * 16;
    for (Index i = 0; i < x.shape[0]; ++i) {
      if (channels_last_) {
        p.in = x.f32() + i * in_image;
        const Index rows = w.out[1], row = out_image / std::max<Index>(1, rows);
        const Index bands = out_image * w.taps() < kernel::least_parallel_macs ? 1 : 2 * run.executor.threads();
        run.executor.each(bands, [&](Index b) {
          const kernel::Range r = kernel::part_of(rows, 1, bands, b);
          kernel::Pool2d band = p;
          band.first_row = r.first, band.out_h = r.last - r.first;
          band.out = y.as<float>() + i * out_image + r.first * row;
          run.kernels.pool2d(band);
        });
      } else {
        kernel::transpose(x.f32() + i * in_image, p.channels, in_image / p.channels, in);
        p.in = in, p.out = out;
        run.kernels.pool2d(p);
        kernel::transpose(out, out_image / p.channels, p.channels, y.as<float>() + i * out_image);
      }
    }
  }

  // The largest byte of each window, channels last, a row of outputs after the other.
  static constexpr Index most_byte_taps = 64;
  void byte_pool(const OperationRun& run) const noexcept {
    const TensorView &x = run.in[0], &y = run.out[0];
    const Window& w = plan_;
    const Index each = w.out[0] * w.out[1], lines = x.shape[0] * each;
    const bool pays = kernel::copy_pays(static_cast<Index>(x.bytes()));
    kernel::each_range(pays ? run.executor : ExecutorRef(), lines, 1, [&](kernel::Range some) {
      for (Index line = some.first; line < some.last; ++line) byte_line(x, line / each, line % each, y, line, run);
    });
  }
  void byte_line(const TensorView& x, Index image, Index place, const TensorView& y, Index line,
                 const OperationRun& run) const noexcept {
    const Window& w = plan_;
    const Index channels = channels_of(x.shape, true);
    const auto* in = x.as<const std::uint8_t>() + image * w.in_count() * channels;
    auto* out = y.as<std::uint8_t>() + line * w.out[2] * channels;
    std::array<const std::uint8_t*, most_byte_taps> starts{};  // the input's rows that the windows lie in
    std::array<const void*, most_byte_taps> taps{};
    std::size_t rows = 0;
    for (Index z = 0; z < w.kernel[0]; ++z) {
      const Index d = place / w.out[1] * w.stride[0] - w.begin[0] + z * w.dilation[0];
      for (Index i = 0; i < w.kernel[1]; ++i) {
        const Index h = place % w.out[1] * w.stride[1] - w.begin[1] + i * w.dilation[1];
        if (d >= 0 && d < w.in[0] && h >= 0 && h < w.in[1])
          starts[rows++] = in + (d * w.in[1] + h) * w.in[2] * channels;
      }
    }
    for (Index o = 0; o < w.out[2]; ++o, out += channels) {
      std::size_t count = 0;
      for (Index i = 0, k = o * w.stride[2] - w.begin[2]; i < w.kernel[2]; ++i, k += w.dilation[2]) {
        if (k < 0 || k >= w.in[2]) continue;
        for (std::size_t r = 0; r < rows; ++r) taps[count++] = starts[r] + k * channels;
      }
      run.kernels.integer->largest(taps.data(), static_cast<Index>(count), out, channels, x.type == DType::i8);
    }
  }

  // Any type, any number of axes, and the positions of maxima.
  void plain_pool(const OperationRun& run) const noexcept {
    const TensorView &x = run.in[0], &y = run.out[0];
    const Window& w = plan_;
    const Index channels = channels_of(x.shape, channels_last_);
    const Index step = channels_last_ ? channels : 1;
    for (Index image_and_channel = 0; image_and_channel < x.shape[0] * channels; ++image_and_channel) {
      const Index i = image_and_channel / channels, c = image_and_channel % channels;
      const Index in_first = i * channels * w.in_count() + (channels_last_ ? c : c * w.in_count());
      const Index out_first = i * channels * w.out_count() + (channels_last_ ? c : c * w.out_count());
      for (Index o = 0; o < w.out_count(); ++o) {
        const Index z0 = o / (w.out[1] * w.out[2]) * w.stride[0] - w.begin[0];
        const Index y0 = o / w.out[2] % w.out[1] * w.stride[1] - w.begin[1];
        const Index x0 = o % w.out[2] * w.stride[2] - w.begin[2];
        double v = kind_ == Kind::max ? -std::numeric_limits<double>::infinity() : 0;
        Index inside = 0, counted = 0, best = 0;
        for (Index t = 0; t < w.taps(); ++t) {
          const Index d = z0 + t / (w.kernel[1] * w.kernel[2]) * w.dilation[0];
          const Index h = y0 + t / w.kernel[2] % w.kernel[1] * w.dilation[1];
          const Index k = x0 + t % w.kernel[2] * w.dilation[2];
          counted += d < w.in[0] + w.end[0] && h < w.in[1] + w.end[1] && k < w.in[2] + w.end[2];
          if (d < 0 || d >= w.in[0] || h < 0 || h >= w.in[1] || k < 0 || k >= w.in[2]) continue;
          const double e = real_at(x, in_first + ((d * w.in[1] + h) * w.in[2] + k) * step);
          if (inside == 0 || e > v) {
            best = column_major_ ? (d * w.in[2] + k) * w.in[1] + h : (d * w.in[1] + h) * w.in[2] + k;
          }
          v = accumulate(v, e);
          ++inside;
        }
        put_real(y, out_first + o * step, finish(v, count_padding_ ? counted : inside));
        if (run.out.size() > 1 && run.out[1].data) put_integer(run.out[1], out_first + o, in_first + best);
      }
    }
  }

  std::string op_;
  bool global_, channels_last_;
  Kind kind_ = Kind::max;
  WindowAttributes window_;
  Window plan_;
  bool count_padding_, column_major_;
  double p_;
};

/// Average and maximum pooling of one image to several grids in one pass, flattened and put behind one another: what
/// `passes::join_pools` makes of an exit head's poolings. Input [N, height, width, C]; output [N, features], for each
/// part [C][cell] as the poolings it stands for had it.
class GridPoolOperation final : public Operation {
 public:
  /// `parts`: the grid of each part, negative for a maximum; positive for an average; none twice. With `by_cells` a
  /// part is [cell][C], and sums stand where the averages are, so that each is written where it stays.
  GridPoolOperation(const Node& node, Index)
      : parts_(node.integers("parts")), by_cells_(node.integer("by_cells", 0) != 0) {
    for (const Index p : parts_) {
      OFFRAMP_REQUIRE(p != 0, "a grid has no cells");
      OFFRAMP_REQUIRE(std::count(parts_.begin(), parts_.end(), p) == 1, "a part stands twice");
      const Index g = p < 0 ? -p : p;
      if (std::find(grids_.begin(), grids_.end(), g) == grids_.end()) grids_.push_back(g);
      is_average_ = is_average_ || p > 0;
      is_maximum_ = is_maximum_ || p < 0;
    }
    std::sort(grids_.rbegin(), grids_.rend());
  }

  void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView& x = float_input(in, 0);
    require_rank(x, 4, 4, "input");
    Index features = 0;
    for (const Index p : parts_) features += p * p * x.shape[3];
    for (const Index g : grids_)
      OFFRAMP_REQUIRE(x.shape[1] >= g && x.shape[2] >= g, "input " + x.shape.text() + " is smaller than its grid");
    set_output(out[0], DType::f32, {x.shape[0], features});
  }
  Cost cost(std::span<const TensorView> in, std::span<const TensorView>) const noexcept override {
    return Cost::plain(in[0].count() * (Index{is_average_} + Index{is_maximum_}));
  }
  std::size_t scratch_bytes(std::span<const TensorView> in, std::span<const TensorView>,
                            Index) const noexcept override {
    Index cells = 0;
    for (const Index g : grids_) cells += g * g;
    return static_cast<std::size_t>(2 * cells * in[0].shape[3] + 16) * sizeof(float);
  }
  std::string algorithm() const override { return "one pass"; }

  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &y = run.out[0];
    const Index h = x.shape[1], w = x.shape[2], c = x.shape[3], features = y.shape[1];
    for (Index i = 0; i < x.shape[0]; ++i) {
      const float* image = x.f32() + i * h * w * c;
      float* out = y.as<float>() + i * features;
      float* scratch = reinterpret_cast<float*>(run.scratch);
      const float *fine_sum = nullptr, *fine_largest = nullptr;  // of the finest grid
      const Index finest = grids_.front();
      for (const Index g : grids_) {
        float *sum = place(g, c, out, scratch), *largest = place(-g, c, out, scratch);
        const bool divides = g < finest && finest % g == 0 && h % finest == 0 && w % finest == 0;
        if (divides) {
          combine(fine_sum, fine_largest, finest, g, c, sum, largest, run.kernels);
        } else {
          const GridAxis down(h, g), across(w, g);
          for (Index k = 0; k < g * g; ++k) {
            const float* first = image + (k / g * down.stride * w + k % g * across.stride) * c;
            run.kernels.pool_cell(first, w * c, down.kernel, across.kernel, c, is_average_ ? sum + k * c : nullptr,
                                  is_maximum_ ? largest + k * c : nullptr);
          }
        }
        if (g == finest) fine_sum = sum, fine_largest = largest;
        if (!by_cells_) turn(g, h, w, c, sum, largest, out);
      }
    }
    return true;
  }

 private:
  // Where the numbers of a part go: where they stay, or else to the next place in `scratch`.
  float* place(Index part, Index c, float* out, float*& scratch) const noexcept {
    for (const Index p : parts_) {
      if (by_cells_ && p == part) return out;
      out += p * p * c;
    }
    return std::exchange(scratch, scratch + part * part * c);
  }
  // A coarse grid from the cells of a fine one that it divides.
  void combine(const float* fine_sum, const float* fine_largest, Index from, Index to, Index c, float* sum,
               float* largest, const kernel::Kernels& kernels) const noexcept {
    const Index ratio = from / to;
    for (Index k = 0; k < to * to; ++k) {
      const Index first = (k / to * ratio * from + k % to * ratio) * c;
      if (is_average_) kernels.pool_cell(fine_sum + first, from * c, ratio, ratio, c, sum + k * c, nullptr);
      if (is_maximum_) kernels.pool_cell(fine_largest + first, from * c, ratio, ratio, c, nullptr, largest + k * c);
    }
  }
  // The parts of a grid, averages instead of sums, channels first.
  void turn(Index g, Index h, Index w, Index c, const float* sum, const float* largest, float* out) const noexcept {
    for (const Index p : parts_) {
      if (p == g || p == -g) {
        const float* from = p > 0 ? sum : largest;
        const float factor = p > 0 ? 1 / static_cast<float>(grid_cell(h, w, g)) : 1;
        for (Index k = 0; k < g * g; ++k) {
          for (Index i = 0; i < c; ++i) out[i * g * g + k] = from[k * c + i] * factor;
        }
      }
      out += p * p * c;
    }
  }

  std::vector<Index> parts_, grids_;  // grids from fine to coarse
  bool by_cells_ = false;
  bool is_average_ = false, is_maximum_ = false;
};

}  // namespace offramp

/// @file layers.hpp
/// The layers of exit heads as they are trained: forward, backward, and their weights with the norms folded in.
///
/// Maps are channels last. The norm is batch normalisation (Ioffe and Szegedy, ICML 2015): statistics of the batch
/// while training, running averages afterwards.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "offramp/exit/head.hpp"
#include "offramp/fit/distillation.hpp"
#include "offramp/kernel/dispatch.hpp"
#include "offramp/kernel/pack.hpp"
#include "offramp/kernel/training.hpp"

namespace offramp::fit {

/// A batch of maps, [n][height][width][channels].
struct Map {
  Index n = 0, height = 0, width = 0, channels = 0;
  std::vector<float> values;

  Index rows() const noexcept { return n * height * width; }
  void resize(Index samples, Index h, Index w, Index c) {
    n = samples, height = h, width = w, channels = c;
    values.resize(static_cast<std::size_t>(rows() * channels));
  }
};

/// Fills with draws of N(0, 2 / inputs) (He et al., ICCV 2015).
inline void initialise(Parameter& p, Index inputs, std::mt19937_64& random) {
  std::normal_distribution<float> draw(0.0f, std::sqrt(2.0f / static_cast<float>(std::max<Index>(1, inputs))));
  for (float& w : p.value) w = draw(random);
}

/// Matrix products on the vector kernels; weights are packed anew each time, since they change.
class Products {
 public:
  /// The right side of the products that follow: w [k][n].
  void pack(const float* w, Index k, Index n) { pack(w, n, 1, k, n); }
  /// The same for w^T, with w [k][n].
  void pack_transposed(const float* w, Index k, Index n) { pack(w, 1, n, n, k); }
  /// c = a w, with a [m][k] and c [m][n].
  void multiply(const float* a, float* c, Index m) const noexcept {
    kernel::Gemm g = product(a, c, m);
    g.run = g.lda = k_;
    kernels_.gemm(g);
  }
  /// c = a w, where a row of a is what stands at `taps` offsets, k / taps floats each, or zeros.
  void multiply_at(const float* a, const std::int32_t* offsets, Index taps, float* c, Index m) {
    zeros_.resize(static_cast<std::size_t>(k_ / taps), 0.0f);
    kernel::Gemm g = product(a, c, m);
    g.taps = taps, g.run = k_ / taps;
    g.offsets = offsets, g.zeros = zeros_.data();
    kernels_.gemm(g);
  }
  /// c += a^T b, with a [m][k], b [m][n] and c [k][n].
  void add_outer(const float* a, const float* b, float* c, Index m, Index k, Index n) const noexcept {
    training_.outer(a, k, b, n, m, k, n, c);
  }
  /// to += from.
  void add(const float* from, float* to, Index n) const noexcept {
    kernels_.binary(kernel::Binary::add, to, 1, from, 1, to, n);
  }

 private:
  kernel::Gemm product(const float* a, float* c, Index m) const noexcept {
    kernel::Gemm g;
    g.m = m, g.n = n_;
    g.a = a, g.b = packed_.data();
    g.c = c, g.ldc = n_;
    return g;
  }
  void pack(const float* w, Index row_step, Index column_step, Index k, Index n) {
    k_ = k, n_ = n;
    packed_.resize(static_cast<std::size_t>(kernel::packed_size(k, n)));
    kernel::pack(w, row_step, column_step, k, n, 1.0f, packed_.data());
  }

  const kernel::Kernels& kernels_ = kernel::kernels_for(best_isa());
  const kernel::TrainingKernels& training_ = kernel::training_kernels_for(best_isa());
  Index k_ = 0, n_ = 0;
  std::vector<float> packed_, zeros_;
};

/// One layer. `backward` follows the `forward` of the same batch, with `training` on.
class Layer {
 public:
  Layer() = default;
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;
  virtual ~Layer() = default;

  virtual void forward(const Map& in, Map& out, bool training) = 0;
  /// From the gradient of the loss by `out`, which is used up, that by the parameters (added) and, unless null, by
  /// `in`.
  virtual void backward(const Map& in, const Map& out, Map& d_out, Map* d_in) = 0;
  virtual std::vector<Parameter*> parameters() = 0;
  /// Statistics that training moves beside the parameters.
  virtual std::vector<std::vector<float>*> statistics() { return {}; }
  /// Appends the layer as it runs after training.
  virtual void write(std::vector<HeadLayer>& to) const = 0;
};

/// Batch norm and, if asked, ReLU, over the rows of a matrix.
class Norm {
 public:
  Norm(Index channels, bool relu) : c_(channels), relu_(relu) {
    scale.resize(channels);
    shift.resize(channels);
    std::fill(scale.value.begin(), scale.value.end(), 1.0f);
    mean.assign(static_cast<std::size_t>(channels), 0.0f);
    variance.assign(static_cast<std::size_t>(channels), 1.0f);
  }

  /// `in` and `out` are [rows][channels].
  void forward(const float* in, float* out, Index rows, bool training) {
    centre_ = mean, inverse_ = variance;
    if (training) {
      kernels_.moments(in, rows, c_, centre_.data(), inverse_.data());
      for (std::size_t i = 0; i < mean.size(); ++i) {
        mean[i] += momentum * (centre_[i] - mean[i]);
        variance[i] += momentum * (inverse_[i] - variance[i]);
      }
    }
    for (float& v : inverse_) v = 1.0f / std::sqrt(v + epsilon);
    kernels_.batch_norm(columns(), in, out, rows, c_);
  }

  /// The gradient by what the last `forward` was given, in the place of that by what it gave.
  void backward(const float* in, float* d, Index rows) {
    std::vector<float> sum(mean.size()), dot(mean.size());
    kernels_.batch_norm_sums(columns(), in, d, rows, c_, sum.data(), dot.data());
    for (std::size_t i = 0; i < sum.size(); ++i) {
      shift.gradient[i] += sum[i];
      scale.gradient[i] += dot[i];
    }
    kernels_.batch_norm_gradient(columns(), in, d, rows, c_, sum.data(), dot.data());
  }

  /// More channels, handed on as they are until training moves them.
  void widen(Index channels) {
    const auto c = static_cast<std::size_t>(c_ += channels);
    for (Parameter* p : {&scale, &shift}) {
      p->value.resize(c, p == &scale ? 1.0f : 0.0f);
      for (auto* v : {&p->gradient, &p->first_moment, &p->second_moment}) v->resize(c, 0.0f);
    }
    mean.resize(c, 0.0f);
    variance.resize(c, 1.0f);
  }

  /// y -> y * factor(c) + offset(c), as it runs after training.
  float factor(std::size_t c) const noexcept { return scale.value[c] / std::sqrt(variance[c] + epsilon); }
  float offset(std::size_t c) const noexcept { return shift.value[c] - mean[c] * factor(c); }

  static constexpr float epsilon = 1e-5f, momentum = 0.1f;
  Parameter scale, shift;
  std::vector<float> mean, variance;

 private:
  kernel::BatchNorm columns() const noexcept {
    return {centre_.data(), inverse_.data(), scale.value.data(), shift.value.data(), relu_};
  }

  Index c_;
  bool relu_;
  std::vector<float> centre_, inverse_;  // of the last batch: means, and one over the standard deviations
  const kernel::TrainingKernels& kernels_ = kernel::training_kernels_for(best_isa());
};

/// Convolution (kernel 1 or 3, padding kernel / 2), norm, ReLU.
class ConvLayer final : public Layer {
 public:
  ConvLayer(Index in, Index out, Index kernel, std::mt19937_64& random)
      : in_(in), out_(out), kernel_(kernel), norm_(out, true) {
    weights_.resize(kernel * kernel * in * out);  // [tap][in][out]
    weights_.decays = true;
    initialise(weights_, kernel * kernel * in, random);
  }

  void forward(const Map& in, Map& out, bool training) override {
    out.resize(in.n, in.height, in.width, out_);
    y_.resize(out.values.size());
    products_.pack(weights_.value.data(), depth(), out_);
    if (is_direct()) {
      products_.multiply(in.values.data(), y_.data(), out.rows());
    } else {
      aim(in, out);
      each_chunk(in, out, [&](Index image, Index pixel, Index rows) {
        products_.multiply_at(in.values.data() + image, offsets_.data(), taps(), y_.data() + pixel * out_, rows);
      });
    }
    norm_.forward(y_.data(), out.values.data(), out.rows(), training);
  }
  void backward(const Map& in, const Map& out, Map& d_out, Map* d_in) override {
    norm_.backward(y_.data(), d_out.values.data(), out.rows());
    if (d_in != nullptr) {
      d_in->resize(in.n, in.height, in.width, in_);
      products_.pack_transposed(weights_.value.data(), depth(), out_);
    }
    if (is_direct()) {
      products_.add_outer(in.values.data(), d_out.values.data(), weights_.gradient.data(), out.rows(), in_, out_);
      if (d_in != nullptr) products_.multiply(d_out.values.data(), d_in->values.data(), out.rows());
      return;
    }
    if (d_in != nullptr) std::fill(d_in->values.begin(), d_in->values.end(), 0.0f);
    columns_.resize(offsets_.size() * static_cast<std::size_t>(in_));
    each_chunk(in, out, [&](Index image, Index pixel, Index rows) {
      const float* d = d_out.values.data() + pixel * out_;
      gather(in.values.data() + image, rows);
      products_.add_outer(columns_.data(), d, weights_.gradient.data(), rows, depth(), out_);
      if (d_in == nullptr) return;
      products_.multiply(d, columns_.data(), rows);
      scatter(d_in->values.data() + image, rows);
    });
  }
  std::vector<Parameter*> parameters() override { return {&weights_, &norm_.scale, &norm_.shift}; }
  std::vector<std::vector<float>*> statistics() override { return {&norm_.mean, &norm_.variance}; }
  void write(std::vector<HeadLayer>& to) const override {
    HeadConv c;
    c.in = in_, c.out = out_, c.kernel = kernel_, c.relu = true;
    const Index taps = kernel_ * kernel_;
    for (Index o = 0; o < out_; ++o) {
      const auto u = static_cast<std::size_t>(o);
      for (Index i = 0; i < in_; ++i) {
        for (Index t = 0; t < taps; ++t)
          c.weights.push_back(weights_.value[static_cast<std::size_t>((t * in_ + i) * out_ + o)] * norm_.factor(u));
      }
      c.bias.push_back(norm_.offset(u));
    }
    to.push_back(std::move(c));
  }

 private:
  Index taps() const noexcept { return kernel_ * kernel_; }
  Index depth() const noexcept { return taps() * in_; }
  bool is_direct() const noexcept { return kernel_ == 1; }

  // Images go through in chunks: what a chunk's windows hold side by side stays in cache.
  Index chunk(const Map& out) const noexcept {
    const Index pixels = out.height * out.width, cached = (Index{1} << 15) / std::max<Index>(1, pixels * depth());
    return std::clamp<Index>(cached, 1, std::max<Index>(1, out.n));
  }
  // Calls f(first element of the input, first pixel of the output, pixels) for every chunk.
  template <class F>
  void each_chunk(const Map& in, const Map& out, F&& f) const {
    const Index step = chunk(out), pixels = out.height * out.width;
    for (Index n = 0; n < out.n; n += step)
      f(n * in.height * in.width * in_, n * pixels, std::min(step, out.n - n) * pixels);
  }
  // Where the taps of each output of a chunk stand, from the chunk's first element; -1 outside.
  void aim(const Map& in, const Map& out) {
    const Index images = chunk(out), pad = kernel_ / 2;
    const std::array<Index, 5> now{images, in.height, in.width, out.height, out.width};
    if (now == aimed_) return;
    aimed_ = now;
    offsets_.clear();
    for (Index n = 0; n < images; ++n) {
      for (Index o = 0; o < out.height * out.width; ++o) {
        for (Index t = 0; t < taps(); ++t) {
          const Index y = o / out.width + t / kernel_ - pad, x = o % out.width + t % kernel_ - pad;
          const bool inside = y >= 0 && y < in.height && x >= 0 && x < in.width;
          offsets_.push_back(inside ? static_cast<std::int32_t>(((n * in.height + y) * in.width + x) * in_) : -1);
        }
      }
    }
  }
  // Calls f(column, offset, floats) for taps that stand side by side.
  template <class F>
  void each_run(Index rows, F&& f) const {
    const auto count = static_cast<std::size_t>(rows * taps());
    const auto width = static_cast<std::size_t>(in_);
    for (std::size_t i = 0; i < count;) {
      std::size_t end = i + 1;
      const std::int32_t at = offsets_[i];
      while (end < count &&
             (at < 0 ? offsets_[end] < 0 : offsets_[end] == at + static_cast<std::int32_t>((end - i) * width)))
        ++end;
      f(i * width, at, (end - i) * width);
      i = end;
    }
  }
  void gather(const float* in, Index rows) {
    each_run(rows, [&](std::size_t column, std::int32_t at, std::size_t floats) {
      float* to = columns_.data() + column;
      if (at < 0)
        std::fill_n(to, floats, 0.0f);
      else
        std::copy_n(in + at, floats, to);
    });
  }
  void scatter(float* d_in, Index rows) const {
    each_run(rows, [&](std::size_t column, std::int32_t at, std::size_t floats) {
      if (at >= 0) products_.add(columns_.data() + column, d_in + at, static_cast<Index>(floats));
    });
  }

  Index in_, out_, kernel_;
  Parameter weights_;
  Norm norm_;
  Products products_;
  std::array<Index, 5> aimed_{};  // the sizes that `offsets_` are for
  std::vector<std::int32_t> offsets_;
  std::vector<float> columns_, y_;
};

/// Depthwise 3 x 3 convolution and norm, without activation.
class DepthwiseLayer final : public Layer {
 public:
  DepthwiseLayer(Index channels, std::mt19937_64& random) : c_(channels), norm_(channels, false) {
    weights_.resize(9 * channels);  // [tap][channel]
    initialise(weights_, 9, random);
  }

  void forward(const Map& in, Map& out, bool training) override {
    out.resize(in.n, in.height, in.width, c_);
    y_.resize(out.values.size());
    kernel::Depthwise d = geometry(in, out);
    for (Index n = 0; n < in.n; ++n) {
      d.in = in.values.data() + n * in.height * in.width * c_;
      d.out = y_.data() + n * out.height * out.width * c_;
      kernel::kernels_for(best_isa()).depthwise(d);
    }
    norm_.forward(y_.data(), out.values.data(), out.rows(), training);
  }
  void backward(const Map& in, const Map& out, Map& d_out, Map* d_in) override {
    norm_.backward(y_.data(), d_out.values.data(), out.rows());
    if (d_in) {
      d_in->resize(in.n, in.height, in.width, c_);
      std::fill(d_in->values.begin(), d_in->values.end(), 0.0f);
    }
    kernel::Depthwise g = geometry(in, out);
    for (Index n = 0; n < out.n; ++n) {
      const Index image = n * in.height * in.width * c_;
      g.in = in.values.data() + image;
      kernel::training_kernels_for(best_isa())
          .depthwise_gradient(g, d_out.values.data() + n * out.height * out.width * c_, weights_.gradient.data(),
                              d_in ? d_in->values.data() + image : nullptr);
    }
  }
  std::vector<Parameter*> parameters() override { return {&weights_, &norm_.scale, &norm_.shift}; }
  std::vector<std::vector<float>*> statistics() override { return {&norm_.mean, &norm_.variance}; }
  void write(std::vector<HeadLayer>& to) const override {
    HeadConv c;
    c.in = c.out = c.groups = c_;
    for (Index i = 0; i < c_; ++i) {
      const auto u = static_cast<std::size_t>(i);
      for (Index t = 0; t < 9; ++t)
        c.weights.push_back(weights_.value[static_cast<std::size_t>(t * c_ + i)] * norm_.factor(u));
      c.bias.push_back(norm_.offset(u));
    }
    to.push_back(std::move(c));
  }

 private:
  kernel::Depthwise geometry(const Map& in, const Map& out) const noexcept {
    kernel::Depthwise d;
    d.channels = c_;
    d.in_h = in.height, d.in_w = in.width, d.out_h = out.height, d.out_w = out.width;
    d.kernel_h = d.kernel_w = 3, d.pad_top = d.pad_left = 1;
    d.weights = weights_.value.data();
    return d;
  }

  Index c_;
  Parameter weights_;
  Norm norm_;
  std::vector<float> y_;
};

/// The means of cells of size x size positions, as HeadAverage has it.
class AverageLayer final : public Layer {
 public:
  explicit AverageLayer(Index size) : size_(size) {}

  void forward(const Map& in, Map& out, bool) override {
    out.resize(in.n, (in.height + size_ - 1) / size_, (in.width + size_ - 1) / size_, in.channels);
    each_cell(in, out, [&](Index from, Index to, Index rows, Index columns) {
      float* mean = out.values.data() + to;
      kernels_.pool_cell(in.values.data() + from, in.width * in.channels, rows, columns, in.channels, mean, nullptr);
      const float scale = 1.0f / static_cast<float>(rows * columns);
      for (Index i = 0; i < in.channels; ++i) mean[i] *= scale;
    });
  }
  void backward(const Map& in, const Map& out, Map& d_out, Map* d_in) override {
    if (d_in == nullptr) return;
    d_in->resize(in.n, in.height, in.width, in.channels);
    each_cell(in, out, [&](Index to, Index from, Index rows, Index columns) {
      const float scale = 1.0f / static_cast<float>(rows * columns);
      for (Index y = 0; y < rows; ++y) {
        float* d = d_in->values.data() + to + y * in.width * in.channels;
        for (Index x = 0; x < columns; ++x) {
          for (Index i = 0; i < in.channels; ++i) *d++ = d_out.values[static_cast<std::size_t>(from + i)] * scale;
        }
      }
    });
  }
  std::vector<Parameter*> parameters() override { return {}; }
  void write(std::vector<HeadLayer>& to) const override { to.emplace_back(HeadAverage{size_}); }

 private:
  // Calls f(first element of a cell, its mean's, rows and columns of the cell).
  template <class F>
  void each_cell(const Map& in, const Map& out, F&& f) const {
    Index to = 0;
    for (Index n = 0; n < out.n; ++n) {
      for (Index y = 0; y < in.height; y += size_) {
        for (Index x = 0; x < in.width; x += size_, to += out.channels)
          f(((n * in.height + y) * in.width + x) * in.channels, to, std::min(size_, in.height - y),
            std::min(size_, in.width - x));
      }
    }
  }

  Index size_;
  const kernel::Kernels& kernels_ = kernel::kernels_for(best_isa());
};

/// Pooling to grids, as HeadPool has it. The result is a map of one position.
class PoolLayer final : public Layer {
 public:
  explicit PoolLayer(HeadPool pool) : pool_(std::move(pool)) {}

  void forward(const Map& in, Map& out, bool) override {
    out.resize(in.n, 1, 1, in.channels * pool_.per_channel());
    const Index c = in.channels;
    std::vector<float> pooled(static_cast<std::size_t>(c));
    each_part(in, [&](Index n, Index feature, Index step, Part part, const Cell& cell) {
      float* to = out.values.data() + n * out.channels + feature;
      const float* from = in.values.data() + n * in.height * in.width * c;
      const Index rows = cell.y1 - cell.y0, columns = cell.x1 - cell.x0;
      const bool is_average = part == Part::average;  // the largest of the first token is the first token
      kernels_.pool_cell(from + (cell.y0 * in.width + cell.x0) * c, in.width * c, rows, columns, c,
                         is_average ? pooled.data() : nullptr, is_average ? nullptr : pooled.data());
      const float scale = is_average ? 1.0f / static_cast<float>(rows * columns) : 1.0f;
      for (Index i = 0; i < c; ++i) to[i * step] = pooled[static_cast<std::size_t>(i)] * scale;
    });
  }
  void backward(const Map& in, const Map& out, Map& d_out, Map* d_in) override {
    if (d_in == nullptr) return;
    const Index c = in.channels;
    d_in->resize(in.n, in.height, in.width, c);
    std::fill(d_in->values.begin(), d_in->values.end(), 0.0f);
    std::vector<float> d(static_cast<std::size_t>(c)), most(d);
    each_part(in, [&](Index n, Index feature, Index step, Part part, const Cell& cell) {
      const Index at = n * out.channels + feature;
      const Index image = n * in.height * in.width * c;
      float* to = d_in->values.data() + image;
      if (part == Part::average) {
        const float scale = 1.0f / static_cast<float>((cell.y1 - cell.y0) * (cell.x1 - cell.x0));
        for (Index i = 0; i < c; ++i)
          d[static_cast<std::size_t>(i)] = d_out.values[static_cast<std::size_t>(at + i * step)] * scale;
        for (Index y = cell.y0; y < cell.y1; ++y) {
          for (Index x = cell.x0; x < cell.x1; ++x) {
            float* pixel = to + (y * in.width + x) * c;
            kernels_.binary(kernel::Binary::add, pixel, 1, d.data(), 1, pixel, c);
          }
        }
        return;
      }
      for (Index i = 0; i < c; ++i) {
        d[static_cast<std::size_t>(i)] = d_out.values[static_cast<std::size_t>(at + i * step)];
        most[static_cast<std::size_t>(i)] = out.values[static_cast<std::size_t>(at + i * step)];
      }
      const Index first = (cell.y0 * in.width + cell.x0) * c;
      training_.largest_gradient(in.values.data() + image + first, in.width * c, cell.y1 - cell.y0, cell.x1 - cell.x0,
                                 c, most.data(), d.data(), to + first);
    });
  }
  std::vector<Parameter*> parameters() override { return {}; }
  void write(std::vector<HeadLayer>& to) const override { to.emplace_back(pool_); }

 private:
  enum class Part : std::uint8_t { average, maximum, first };
  struct Cell {
    Index y0, y1, x0, x1;
  };

  // Calls f(sample, first feature, step between channels, part, cell) for every pooled cell.
  template <class F>
  void each_part(const Map& in, F&& f) const {
    for (Index n = 0; n < in.n; ++n) {
      Index feature = 0;
      for (const Index g : pool_.grids) {
        const GridAxis down(in.height, std::min(g, in.height)), across(in.width, std::min(g, in.width));
        for (const Part part : {Part::average, Part::maximum}) {
          if (!(part == Part::average ? pool_.average : pool_.maximum)) continue;
          for (Index i = 0; i < g; ++i) {
            for (Index j = 0; j < g; ++j) {
              const Cell cell{i * down.stride, i * down.stride + down.kernel, j * across.stride,
                              j * across.stride + across.kernel};
              f(n, feature + i * g + j, g * g, part, cell);
            }
          }
          feature += in.channels * g * g;
        }
      }
      if (pool_.first_token) f(n, feature, Index{1}, Part::first, Cell{0, 1, 0, 1});
    }
  }

  HeadPool pool_;
  const kernel::Kernels& kernels_ = kernel::kernels_for(best_isa());
  const kernel::TrainingKernels& training_ = kernel::training_kernels_for(best_isa());
};

/// Norm of the features, dense layer, ReLU if asked. Works on maps of one position.
class DenseLayer final : public Layer {
 public:
  DenseLayer(Index in, Index out, bool relu, std::mt19937_64& random)
      : in_(in), out_(out), relu_(relu), norm_(in, false) {
    weights_.resize(in * out);  // [in][out]
    weights_.decays = true;
    bias_.resize(out);
    initialise(weights_, relu ? in : 2 * in, random);
  }

  void forward(const Map& in, Map& out, bool training) override {
    out.resize(in.n, 1, 1, out_);
    features_.resize(in.values.size());
    norm_.forward(in.values.data(), features_.data(), in.n, training);
    products_.pack(weights_.value.data(), in_, out_);
    products_.multiply(features_.data(), out.values.data(), in.n);
    for (Index n = 0; n < in.n; ++n) {
      float* row = out.values.data() + n * out_;
      for (Index i = 0; i < out_; ++i) {
        row[i] += bias_.value[static_cast<std::size_t>(i)];
        if (relu_) row[i] = std::max(row[i], 0.0f);
      }
    }
  }
  void backward(const Map& in, const Map& out, Map& d_out, Map* d_in) override {
    std::vector<float>& d = d_out.values;
    if (relu_) {
      for (std::size_t i = 0; i < d.size(); ++i) d[i] = out.values[i] > 0 ? d[i] : 0.0f;
    }
    for (Index n = 0; n < in.n; ++n) {
      for (Index i = 0; i < out_; ++i)
        bias_.gradient[static_cast<std::size_t>(i)] += d[static_cast<std::size_t>(n * out_ + i)];
    }
    products_.add_outer(features_.data(), d.data(), weights_.gradient.data(), in.n, in_, out_);
    products_.pack_transposed(weights_.value.data(), in_, out_);
    Map unused;
    Map& d_features = d_in ? *d_in : unused;
    d_features.resize(in.n, 1, 1, in_);
    products_.multiply(d.data(), d_features.values.data(), in.n);
    norm_.backward(in.values.data(), d_features.values.data(), in.n);
  }
  std::vector<Parameter*> parameters() override { return {&weights_, &bias_, &norm_.scale, &norm_.shift}; }
  std::vector<std::vector<float>*> statistics() override { return {&norm_.mean, &norm_.variance}; }
  void write(std::vector<HeadLayer>& to) const override {
    HeadDense d;
    d.in = in_, d.out = out_, d.relu = relu_;
    for (Index o = 0; o < out_; ++o) {
      float bias = bias_.value[static_cast<std::size_t>(o)];
      for (Index i = 0; i < in_; ++i) {
        const auto u = static_cast<std::size_t>(i);
        const float w = weights_.value[static_cast<std::size_t>(i * out_ + o)];
        d.weights.push_back(w * norm_.factor(u));
        bias += w * norm_.offset(u);
      }
      d.bias.push_back(bias);
    }
    to.push_back(std::move(d));
  }

  /// More inputs behind the ones there are, with weights of zero: what the layer says does not change.
  void widen(Index inputs) {
    Parameter more;
    more.resize((in_ + inputs) * out_);
    std::copy(weights_.value.begin(), weights_.value.end(), more.value.begin());
    more.decays = true;
    weights_ = std::move(more);
    in_ += inputs;
    norm_.widen(inputs);
  }

 private:
  Index in_, out_;
  bool relu_;
  Parameter weights_, bias_;
  Norm norm_;
  Products products_;
  std::vector<float> features_;
};

}  // namespace offramp::fit

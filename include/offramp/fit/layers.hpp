/// @file layers.hpp
/// The layers of exit heads as they are trained: forward, backward, and their weights with the norms folded in.
///
/// Maps are channels last. The norm is batch normalisation (Ioffe and Szegedy, ICML 2015): statistics of the batch
/// while training, running averages afterwards.
#pragma once

#include <algorithm>
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
  /// c = a w, with a [m][k] and w [k][n].
  void multiply(const float* a, const float* w, float* c, Index m, Index k, Index n) { run(a, w, n, 1, c, m, k, n); }
  /// c = a w^T, with a [m][n] and w [k][n].
  void multiply_transposed(const float* a, const float* w, float* c, Index m, Index k, Index n) {
    run(a, w, 1, n, c, m, n, k);
  }
  /// c += a^T b, with a [m][k], b [m][n] and c [k][n].
  void add_outer(const float* a, const float* b, float* c, Index m, Index k, Index n) const noexcept {
    kernels_.outer(a, k, b, n, m, k, n, c);
  }

 private:
  void run(const float* a, const float* w, Index row_step, Index column_step, float* c, Index m, Index k, Index n) {
    packed_.resize(static_cast<std::size_t>(kernel::packed_size(k, n)));
    kernel::pack(w, row_step, column_step, k, n, 1.0f, packed_.data());
    kernel::Gemm g;
    g.m = m, g.n = n, g.run = k;
    g.a = a, g.lda = k;
    g.b = packed_.data();
    g.c = c, g.ldc = n;
    kernels_.gemm(g);
  }

  const kernel::Kernels& kernels_ = kernel::kernels_for(best_isa());
  std::vector<float> packed_;
};

/// One layer. `backward` follows the `forward` of the same batch, with `training` on.
class Layer {
 public:
  Layer() = default;
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;
  virtual ~Layer() = default;

  virtual void forward(const Map& in, Map& out, bool training) = 0;
  /// From the gradient of the loss by `out` that by the parameters (added) and, unless null, by `in`.
  virtual void backward(const Map& in, const Map& out, const Map& d_out, Map* d_in) = 0;
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

  /// `y` is [rows][channels]: becomes the normalised values, and `out` what follows.
  void forward(float* y, float* out, Index rows, bool training) {
    const auto c = static_cast<std::size_t>(c_);
    inverse_.assign(c, 0.0f);
    std::vector<float> m = mean, v = variance;
    if (training) {
      kernels_.moments(y, rows, c_, m.data(), v.data());
      for (std::size_t i = 0; i < c; ++i) {
        mean[i] += momentum * (m[i] - mean[i]);
        variance[i] += momentum * (v[i] - variance[i]);
      }
    }
    for (std::size_t i = 0; i < c; ++i) inverse_[i] = 1.0f / std::sqrt(v[i] + epsilon);
    kernels_.batch_norm(y, out, rows, c_, m.data(), inverse_.data(), scale.value.data(), shift.value.data(), relu_);
  }

  /// `normalised` is what `forward` left in y; `d` becomes the gradient by the input of the norm.
  void backward(const float* normalised, const float* out, const float* d_out, float* d, Index rows) {
    const auto c = static_cast<std::size_t>(c_);
    std::vector<float> sum(c), dot(c), factor(c);
    kernels_.batch_norm_sums(normalised, relu_ ? out : nullptr, d_out, d, rows, c_, sum.data(), dot.data());
    const float inverse_rows = 1.0f / static_cast<float>(rows);
    for (std::size_t i = 0; i < c; ++i) {
      shift.gradient[i] += sum[i];
      scale.gradient[i] += dot[i];
      sum[i] *= inverse_rows;
      dot[i] *= inverse_rows;
      factor[i] = scale.value[i] * inverse_[i];
    }
    kernels_.batch_norm_gradient(normalised, d, rows, c_, factor.data(), sum.data(), dot.data());
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
  Index c_;
  bool relu_;
  std::vector<float> inverse_;
  const kernel::Kernels& kernels_ = kernel::kernels_for(best_isa());
};

/// Convolution (kernel 1 or 3, padding kernel / 2), norm, ReLU.
class ConvLayer final : public Layer {
 public:
  ConvLayer(Index in, Index out, Index kernel, Index stride, std::mt19937_64& random)
      : in_(in), out_(out), kernel_(kernel), stride_(stride), norm_(out, true) {
    weights_.resize(kernel * kernel * in * out);  // [tap][in][out]
    weights_.decays = true;
    initialise(weights_, kernel * kernel * in, random);
  }

  void forward(const Map& in, Map& out, bool training) override {
    out.resize(in.n, (in.height + stride_ - 1) / stride_, (in.width + stride_ - 1) / stride_, out_);
    const float* left = in.values.data();
    if (kernel_ != 1 || stride_ != 1) {
      gather(in, out);
      left = columns_.data();
    }
    y_.resize(out.values.size());
    products_.multiply(left, weights_.value.data(), y_.data(), out.rows(), depth(), out_);
    norm_.forward(y_.data(), out.values.data(), out.rows(), training);
  }
  void backward(const Map& in, const Map& out, const Map& d_out, Map* d_in) override {
    d_.resize(out.values.size());
    norm_.backward(y_.data(), out.values.data(), d_out.values.data(), d_.data(), out.rows());
    const bool direct = kernel_ == 1 && stride_ == 1;
    products_.add_outer(direct ? in.values.data() : columns_.data(), d_.data(), weights_.gradient.data(), out.rows(),
                        depth(), out_);
    if (d_in == nullptr) return;
    d_in->resize(in.n, in.height, in.width, in_);
    if (direct) {
      products_.multiply_transposed(d_.data(), weights_.value.data(), d_in->values.data(), out.rows(), depth(), out_);
      return;
    }
    products_.multiply_transposed(d_.data(), weights_.value.data(), columns_.data(), out.rows(), depth(), out_);
    scatter(out, *d_in);
  }
  std::vector<Parameter*> parameters() override { return {&weights_, &norm_.scale, &norm_.shift}; }
  std::vector<std::vector<float>*> statistics() override { return {&norm_.mean, &norm_.variance}; }
  void write(std::vector<HeadLayer>& to) const override {
    HeadConv c;
    c.in = in_, c.out = out_, c.kernel = kernel_, c.stride = stride_, c.relu = true;
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
  Index depth() const noexcept { return kernel_ * kernel_ * in_; }

  // Calls f(column, pixel or -1) for every tap of every output.
  template <class F>
  void each_tap(const Map& in_shape, const Map& out, F&& f) const {
    const Index pad = kernel_ / 2;
    Index column = 0;
    for (Index n = 0; n < out.n; ++n) {
      for (Index y = 0; y < out.height; ++y) {
        for (Index x = 0; x < out.width; ++x) {
          for (Index ky = 0; ky < kernel_; ++ky) {
            const Index iy = y * stride_ + ky - pad;
            for (Index kx = 0; kx < kernel_; ++kx) {
              const Index ix = x * stride_ + kx - pad;
              const bool inside = iy >= 0 && iy < in_shape.height && ix >= 0 && ix < in_shape.width;
              f(column, inside ? (n * in_shape.height + iy) * in_shape.width + ix : -1);
              column += in_;
            }
          }
        }
      }
    }
  }
  void gather(const Map& in, const Map& out) {
    columns_.resize(static_cast<std::size_t>(out.rows() * depth()));
    const std::size_t bytes = static_cast<std::size_t>(in_) * sizeof(float);
    each_tap(in, out, [&](Index column, Index pixel) {
      float* to = columns_.data() + column;
      if (pixel < 0) {
        std::memset(to, 0, bytes);
      } else {
        std::memcpy(to, in.values.data() + pixel * in_, bytes);
      }
    });
  }
  void scatter(const Map& out, Map& d_in) const {
    std::fill(d_in.values.begin(), d_in.values.end(), 0.0f);
    each_tap(d_in, out, [&](Index column, Index pixel) {
      if (pixel < 0) return;
      float* to = d_in.values.data() + pixel * in_;
      const float* from = columns_.data() + column;
      for (Index i = 0; i < in_; ++i) to[i] += from[i];
    });
  }

  Index in_, out_, kernel_, stride_;
  Parameter weights_;
  Norm norm_;
  Products products_;
  std::vector<float> columns_, y_, d_;
};

/// Depthwise 3 x 3 convolution and norm, without activation.
class DepthwiseLayer final : public Layer {
 public:
  DepthwiseLayer(Index channels, Index stride, std::mt19937_64& random)
      : c_(channels), stride_(stride), norm_(channels, false) {
    weights_.resize(9 * channels);  // [tap][channel]
    initialise(weights_, 9, random);
  }

  void forward(const Map& in, Map& out, bool training) override {
    out.resize(in.n, (in.height + stride_ - 1) / stride_, (in.width + stride_ - 1) / stride_, c_);
    y_.resize(out.values.size());
    kernel::Depthwise d;
    d.channels = c_;
    d.in_h = in.height, d.in_w = in.width, d.out_h = out.height, d.out_w = out.width;
    d.kernel_h = d.kernel_w = 3, d.stride_h = d.stride_w = stride_, d.pad_top = d.pad_left = 1;
    d.weights = weights_.value.data();
    for (Index n = 0; n < in.n; ++n) {
      d.in = in.values.data() + n * in.height * in.width * c_;
      d.out = y_.data() + n * out.height * out.width * c_;
      kernel::kernels_for(best_isa()).depthwise(d);
    }
    norm_.forward(y_.data(), out.values.data(), out.rows(), training);
  }
  void backward(const Map& in, const Map& out, const Map& d_out, Map* d_in) override {
    d_.resize(out.values.size());
    norm_.backward(y_.data(), out.values.data(), d_out.values.data(), d_.data(), out.rows());
    if (d_in) {
      d_in->resize(in.n, in.height, in.width, c_);
      std::fill(d_in->values.begin(), d_in->values.end(), 0.0f);
    }
    const float* d = d_.data();
    for (Index n = 0; n < out.n; ++n) {
      for (Index y = 0; y < out.height; ++y) {
        for (Index x = 0; x < out.width; ++x, d += c_) {
          for (Index t = 0; t < 9; ++t) {
            const Index iy = y * stride_ + t / 3 - 1, ix = x * stride_ + t % 3 - 1;
            if (iy < 0 || iy >= in.height || ix < 0 || ix >= in.width) continue;
            const Index pixel = ((n * in.height + iy) * in.width + ix) * c_;
            const float* from = in.values.data() + pixel;
            float* gradient = weights_.gradient.data() + t * c_;
            for (Index i = 0; i < c_; ++i) gradient[i] += d[i] * from[i];
            if (d_in == nullptr) continue;
            float* to = d_in->values.data() + pixel;
            const float* w = weights_.value.data() + t * c_;
            for (Index i = 0; i < c_; ++i) to[i] += d[i] * w[i];
          }
        }
      }
    }
  }
  std::vector<Parameter*> parameters() override { return {&weights_, &norm_.scale, &norm_.shift}; }
  std::vector<std::vector<float>*> statistics() override { return {&norm_.mean, &norm_.variance}; }
  void write(std::vector<HeadLayer>& to) const override {
    HeadConv c;
    c.in = c.out = c.groups = c_, c.stride = stride_;
    for (Index i = 0; i < c_; ++i) {
      const auto u = static_cast<std::size_t>(i);
      for (Index t = 0; t < 9; ++t)
        c.weights.push_back(weights_.value[static_cast<std::size_t>(t * c_ + i)] * norm_.factor(u));
      c.bias.push_back(norm_.offset(u));
    }
    to.push_back(std::move(c));
  }

 private:
  Index c_, stride_;
  Parameter weights_;
  Norm norm_;
  std::vector<float> y_, d_;
};

/// Pooling to grids, as HeadPool has it. The result is a map of one position.
class PoolLayer final : public Layer {
 public:
  explicit PoolLayer(HeadPool pool) : pool_(std::move(pool)) {}

  void forward(const Map& in, Map& out, bool) override {
    out.resize(in.n, 1, 1, in.channels * pool_.per_channel());
    const Index c = in.channels;
    std::vector<float> pooled(static_cast<std::size_t>(c)), row(pooled);
    each_part(in, [&](Index n, Index feature, Index step, Part part, const Cell& cell) {
      float* to = out.values.data() + n * out.channels + feature;
      const float* from = in.values.data() + n * in.height * in.width * c;
      if (part == Part::average) {
        const float scale = 1.0f / static_cast<float>((cell.y1 - cell.y0) * (cell.x1 - cell.x0));
        for (Index y = cell.y0; y < cell.y1; ++y) {
          const bool first = y == cell.y0;
          kernels_.sum_rows(from + (y * in.width + cell.x0) * c, first ? pooled.data() : row.data(), cell.x1 - cell.x0,
                            c, scale);
          if (!first) kernels_.binary(kernel::Binary::add, pooled.data(), 1, row.data(), 1, pooled.data(), c);
        }
      } else {
        const float* start = from + (cell.y0 * in.width + cell.x0) * c;
        std::copy_n(start, c, pooled.data());
        for (Index y = cell.y0; part == Part::maximum && y < cell.y1; ++y) {
          for (Index x = cell.x0; x < cell.x1; ++x)
            kernels_.binary(kernel::Binary::max, pooled.data(), 1, from + (y * in.width + x) * c, 1, pooled.data(), c);
        }
      }
      for (Index i = 0; i < c; ++i) to[i * step] = pooled[static_cast<std::size_t>(i)];
    });
  }
  void backward(const Map& in, const Map& out, const Map& d_out, Map* d_in) override {
    if (d_in == nullptr) return;
    const Index c = in.channels;
    d_in->resize(in.n, in.height, in.width, c);
    std::fill(d_in->values.begin(), d_in->values.end(), 0.0f);
    std::vector<float> d(static_cast<std::size_t>(c));
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
      for (Index i = 0; i < c; ++i) {  // the first position that holds the maximum
        const float most = out.values[static_cast<std::size_t>(at + i * step)];
        const float* from = in.values.data() + image + i;
        Index where = cell.y0 * in.width + cell.x0;
        for (Index y = cell.y0, found = 0; part == Part::maximum && found == 0 && y < cell.y1; ++y) {
          for (Index x = cell.x0; found == 0 && x < cell.x1; ++x) {
            if (from[(y * in.width + x) * c] == most) where = y * in.width + x, found = 1;
          }
        }
        to[where * c + i] += d_out.values[static_cast<std::size_t>(at + i * step)];
      }
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
    normalised_ = in.values;
    features_.resize(in.values.size());
    norm_.forward(normalised_.data(), features_.data(), in.n, training);
    products_.multiply(features_.data(), weights_.value.data(), out.values.data(), in.n, in_, out_);
    for (Index n = 0; n < in.n; ++n) {
      float* row = out.values.data() + n * out_;
      for (Index i = 0; i < out_; ++i) {
        row[i] += bias_.value[static_cast<std::size_t>(i)];
        if (relu_) row[i] = std::max(row[i], 0.0f);
      }
    }
  }
  void backward(const Map& in, const Map& out, const Map& d_out, Map* d_in) override {
    d_ = d_out.values;
    if (relu_) {
      for (std::size_t i = 0; i < d_.size(); ++i) d_[i] = out.values[i] > 0 ? d_[i] : 0.0f;
    }
    for (Index n = 0; n < in.n; ++n) {
      for (Index i = 0; i < out_; ++i)
        bias_.gradient[static_cast<std::size_t>(i)] += d_[static_cast<std::size_t>(n * out_ + i)];
    }
    products_.add_outer(features_.data(), d_.data(), weights_.gradient.data(), in.n, in_, out_);
    d_features_.resize(features_.size());
    products_.multiply_transposed(d_.data(), weights_.value.data(), d_features_.data(), in.n, in_, out_);
    std::vector<float> unused;
    float* to = nullptr;
    if (d_in) {
      d_in->resize(in.n, 1, 1, in_);
      to = d_in->values.data();
    } else {
      unused.resize(features_.size());
      to = unused.data();
    }
    norm_.backward(normalised_.data(), features_.data(), d_features_.data(), to, in.n);
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
  std::vector<float> normalised_, features_, d_, d_features_;
};

}  // namespace offramp::fit

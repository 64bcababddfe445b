/// @file least_squares.hpp
/// Least squares between what a product reads and what it should compute: windows drawn from samples, sums of their
/// products, weights in and out of the graph.
#pragma once

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <algorithm>
#include <cstdint>
#include <random>
#include <string>

#include "offramp/fit/layers.hpp"
#include "offramp/graph/simplify.hpp"

namespace offramp::detail {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using FloatMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Reads windows of a product's input and the outputs that belong to them, at places drawn at random.
class PatchReader {
 public:
  PatchReader(const Node& node, const Graph& g, const Shape& in, const Shape& out) {
    is_conv_ = node.op == "Conv";
    if (is_conv_) {
      window_ = WindowAttributes(node).resolve(in, g[node.inputs[1]].constant.shape(), false);
      channels_ = in[1], outs_ = out[1];
    } else {
      channels_ = in[in.rank() - 1], outs_ = out[out.rank() - 1];
      rows_ = in.count(1, in.rank() - 1);
    }
  }
  Index taps() const noexcept { return is_conv_ ? window_.taps() : 1; }
  Index pixels() const noexcept { return is_conv_ ? window_.out_count() : rows_; }
  Index width() const noexcept { return channels_ * taps(); }
  Index outputs() const noexcept { return outs_; }

  /// The window of output `p` of sample `i`, channel by channel.
  void read(const TensorView& x, Index i, Index p, float* to) const {
    if (!is_conv_) {
      for (Index c = 0; c < channels_; ++c) to[c] = x.f32()[(i * rows_ + p) * channels_ + c];
      return;
    }
    const Window& w = window_;
    const Index z0 = p / (w.out[1] * w.out[2]) * w.stride[0] - w.begin[0];
    const Index y0 = p / w.out[2] % w.out[1] * w.stride[1] - w.begin[1];
    const Index x0 = p % w.out[2] * w.stride[2] - w.begin[2];
    for (Index t = 0; t < w.taps(); ++t) {
      const Index d = z0 + t / (w.kernel[1] * w.kernel[2]) * w.dilation[0];
      const Index h = y0 + t / w.kernel[2] % w.kernel[1] * w.dilation[1];
      const Index k = x0 + t % w.kernel[2] * w.dilation[2];
      const bool inside = d >= 0 && d < w.in[0] && h >= 0 && h < w.in[1] && k >= 0 && k < w.in[2];
      const Index at = inside ? (d * w.in[1] + h) * w.in[2] + k : 0;
      for (Index c = 0; c < channels_; ++c)
        to[c * w.taps() + t] = inside ? x.f32()[(i * channels_ + c) * w.in_count() + at] : 0.0f;
    }
  }
  void target(const TensorView& y, Index i, Index p, float* to) const {
    for (Index o = 0; o < outs_; ++o)
      to[o] = y.f32()[is_conv_ ? (i * outs_ + o) * pixels() + p : (i * rows_ + p) * outs_ + o];
  }

 private:
  bool is_conv_ = false;
  Window window_;
  Index channels_ = 0, outs_ = 0, rows_ = 1;
};

/// Sums of products of windows with themselves and with outputs.
struct Moments {
  Matrix xx, xy;  // with a last row and column for the constant
  Matrix yy;      // [1][outputs]: squares
  double rows = 0;
};

/// Windows of a product's input, a 1 behind each, and what the product should make of them. Where `floor` is not
/// infinite, anything up to it is as good: a ReLU behind makes it zero.
struct Equations {
  FloatMatrix a, b, floor;
};

/// sums += a^T b: a few hundred rows at a time in float32, where a sum of products is off by less than a millionth of
/// what it adds up, and those sums in float64.
inline void add_products(const FloatMatrix& a, const FloatMatrix& b, Matrix& sums) {
  constexpr Index most = 256;
  const fit::Products products{};
  FloatMatrix part(a.cols(), b.cols());
  for (Index row = 0; row < a.rows(); row += most) {
    part.setZero();
    products.add_outer(a.data() + row * a.cols(), b.data() + row * b.cols(), part.data(),
                       std::min(most, a.rows() - row), a.cols(), b.cols());
    sums += part.cast<double>();
  }
}

/// Equations of some samples at up to `each` places of each; `floor` is null where none is wanted.
inline Equations draw(const PatchReader& r, const TensorView& x, const TensorView& y, const TensorView* floor,
                      Index each, std::mt19937_64& random) {
  const Index n = x.shape[0], width = r.width() + 1;
  const Index per = std::min(each, r.pixels());
  Equations e{FloatMatrix(n * per, width), FloatMatrix(n * per, r.outputs()),
              FloatMatrix(floor ? n * per : 0, r.outputs())};
  for (Index i = 0; i < n; ++i) {
    for (Index k = 0; k < per; ++k) {
      const Index p = per == r.pixels() ? k : static_cast<Index>(random() % static_cast<std::uint64_t>(r.pixels()));
      const Index row = i * per + k;
      r.read(x, i, p, e.a.data() + row * width);
      e.a(row, width - 1) = 1;
      r.target(y, i, p, e.b.data() + row * r.outputs());
      if (floor) r.target(*floor, i, p, e.floor.data() + row * r.outputs());
    }
  }
  return e;
}

inline void take(Moments& m, const Equations& e) {
  if (m.rows == 0) {
    m.xx = Matrix::Zero(e.a.cols(), e.a.cols());
    m.xy = Matrix::Zero(e.a.cols(), e.b.cols());
    m.yy = Matrix::Zero(1, e.b.cols());
  }
  add_products(e.a, e.a, m.xx);
  add_products(e.a, e.b, m.xy);
  m.yy += e.b.cast<double>().array().square().matrix().colwise().sum();
  m.rows += static_cast<double>(e.a.rows());
}

/// Raises an Error where sums for a node have no float: an input of 1e30, or a network that does not answer it.
inline void require_finite(const Moments& m, const Node& n) {
  if (!m.xx.allFinite() || !m.xy.allFinite())
    raise(Error("what the product reads or gives is not finite, or too large to be fitted", n.name, n.op, ""));
}

/// The weights of a product as [in channel x tap, constant][outputs], and back.
inline Matrix weights_of(const Graph& g, const Node& n, Index width, Index outputs) {
  Matrix w = Matrix::Zero(width + 1, outputs);
  const Tensor& t = g[n.inputs[1]].constant;
  const bool by_row = n.op == "Conv" || n.integer("transB", 0) != 0;
  for (Index o = 0; o < outputs; ++o) {
    for (Index i = 0; i < width; ++i)
      w(i, o) = static_cast<double>(t.view().f32()[by_row ? o * width + i : i * outputs + o]);
    if (n.input(2) != no_value) {
      const Tensor& b = g[n.inputs[2]].constant;
      w(width, o) = real_at(b.view(), b.count() == 1 ? 0 : o);
    }
  }
  return w;
}
/// The constant, one number for each output, that is added to a product without a bias of its own by the only node that
/// reads it, or null.
inline ValueId* bias_behind(Graph& g, const Node& n, Index outputs) {
  Node* reader = nullptr;
  for (Node& r : g.nodes) {
    const auto reads = std::count(r.inputs.begin(), r.inputs.end(), n.outputs[0]);
    if (reads == 0) continue;
    if (reader || reads > 1) return nullptr;
    reader = &r;
  }
  if (!reader || reader->op != "Add" || g.is_output(n.outputs[0])) return nullptr;
  for (ValueId& v : reader->inputs) {
    if (!g.is_constant(v)) continue;
    const Shape& s = g[v].constant.shape();
    if (s.rank() > 0 && s.count() == outputs && s[s.rank() - 1] == outputs && g[v].constant.type() == DType::f32)
      return &v;
  }
  return nullptr;
}
inline void set_weights(Graph& g, Node& n, const Matrix& w) {
  const Index width = static_cast<Index>(w.rows()) - 1, outputs = static_cast<Index>(w.cols());
  Tensor t(DType::f32, g[n.inputs[1]].constant.shape()), b(DType::f32, {outputs});
  const bool by_row = n.op == "Conv" || n.integer("transB", 0) != 0;
  for (Index o = 0; o < outputs; ++o) {
    for (Index i = 0; i < width; ++i)
      static_cast<float*>(t.mutable_data())[by_row ? o * width + i : i * outputs + o] = static_cast<float>(w(i, o));
    static_cast<float*>(b.mutable_data())[o] = static_cast<float>(w(width, o));
  }
  n.inputs[1] = g.add_constant(n.name + "_fitted_weight", t);
  if (n.op == "MatMul") {  // has no bias of its own
    ValueId* bias = bias_behind(g, n, outputs);
    if (!bias) return;
    Tensor sum(DType::f32, g[*bias].constant.shape());
    for (Index o = 0; o < outputs; ++o)
      static_cast<float*>(sum.mutable_data())[o] = g[*bias].constant.view().f32()[o] + static_cast<float>(w(width, o));
    *bias = g.add_constant(n.name + "_fitted_bias", sum);
    return;
  }
  n.inputs.resize(std::max<std::size_t>(3, n.inputs.size()), no_value);
  n.inputs[2] = g.add_constant(n.name + "_fitted_bias", b);
}

/// The weights that solve the equations best, with a pull of `ridge` (a share of the mean square of what is read) to
/// the weights `start`.
inline Matrix solve(const Moments& m, const Matrix& start, bool has_bias, double ridge) {
  Matrix a = m.xx.selfadjointView<Eigen::Lower>();
  const Index n = static_cast<Index>(a.rows());
  const double pull = ridge * std::max(a.diagonal().head(n - 1).mean(), 1e-12);
  Matrix b = m.xy;
  for (Index i = 0; i + 1 < n; ++i) {
    a(i, i) += pull;
    b.row(i) += pull * start.row(i);
  }
  a(n - 1, n - 1) += 1e-9 * m.rows;
  if (!has_bias) {
    a.row(n - 1).head(n - 1).setZero();
    b.row(n - 1).setZero();
  }
  return a.selfadjointView<Eigen::Lower>().llt().solve(b);
}

}  // namespace offramp::detail

/// @file network.hpp
/// A whole network in training: its convolutions and matrix products learn, everything else stays as it is.
///
/// Samples are independent of each other (batch norms are inside their convolutions, see `simplified`), so each runs
/// forward and backward by itself, with all its activations in cache, and threads share nothing but the weights.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "offramp/fit/distillation.hpp"
#include "offramp/graph/attach.hpp"
#include "offramp/graph/simplify.hpp"
#include "offramp/kernel/dispatch.hpp"
#include "offramp/kernel/pack.hpp"
#include "offramp/kernel/training.hpp"
#include "offramp/layer/elementwise.hpp"
#include "offramp/layer/window.hpp"

namespace offramp::fit {

/// What one thread needs to train on a sample: activations, their gradients, and gradients of the parameters.
struct Pass {
  std::vector<float> values, gradients, scratch;
  std::vector<std::vector<float>> parameters;
};

namespace detail {

/// Where a value stands in a pass: channels last, [positions][channels].
struct Slot {
  Index offset = -1, channels = 0, positions = 1;
  bool learns = false;  ///< depends on a parameter

  Index count() const noexcept { return channels * positions; }
};

/// One operator of a network in training. Gradients are added to what stands there.
class TrainStep {
 public:
  TrainStep() = default;
  TrainStep(const TrainStep&) = delete;
  TrainStep& operator=(const TrainStep&) = delete;
  virtual ~TrainStep() = default;
  virtual void forward(Pass& p) const = 0;
  virtual void backward(Pass& p) const = 0;
  virtual Index scratch() const { return 0; }
};

/// The position of element `i` of a value of this shape (one sample, channels first) when channels come last.
inline Index channels_last(const Shape& s, Index i) {
  if (s.rank() < 3) return i;
  const Index channels = s[1], positions = s.count(2, s.rank());
  return i % positions * channels + i / positions;
}

/// A convolution or a product with constant weights. Weights are [tap][in][out].
class ProductStep final : public TrainStep {
 public:
  ProductStep(const Slot& in, const Slot& out, std::vector<std::int32_t> offsets, Index taps,
              std::size_t first_parameter, const kernel::Kernels& kernels, const kernel::TrainingKernels& training)
      : in_(in),
        out_(out),
        taps_(taps),
        first_(first_parameter),
        offsets_(std::move(offsets)),
        kernels_(kernels),
        training_(training) {
    zeros_.assign(static_cast<std::size_t>(std::max(in.channels, out.channels) + 64), 0.0f);
    if (!in.learns) return;
    // Which output pixel reads an input pixel with which tap.
    back_.assign(static_cast<std::size_t>(in.positions * taps), -1);
    for (Index o = 0; o < out.positions; ++o) {
      for (Index t = 0; t < taps; ++t) {
        const Index at = offsets_.empty() ? 0 : offsets_[static_cast<std::size_t>(o * taps + t)];
        if (at >= 0)
          back_[static_cast<std::size_t>(at / in.channels * taps + t)] = static_cast<std::int32_t>(o * out.channels);
      }
    }
  }

  Index depth() const noexcept { return taps_ * in_.channels; }
  std::size_t first_parameter() const noexcept { return first_; }
  Index scratch() const override { return offsets_.empty() ? 0 : out_.positions * depth(); }

  /// Packs the weights anew, forward and backward.
  void pack(const std::vector<float>& weights, const std::vector<float>& bias) {
    packed_.resize(static_cast<std::size_t>(kernel::packed_size(depth(), out_.channels)));
    kernel::pack(weights.data(), out_.channels, 1, depth(), out_.channels, 1.0f, packed_.data());
    bias_.assign(static_cast<std::size_t>(kernel::padded_columns(out_.channels)), 0.0f);
    std::copy(bias.begin(), bias.end(), bias_.begin());
    if (!in_.learns) return;
    std::vector<float> turned(weights.size());
    for (Index t = 0; t < taps_; ++t)
      kernel::transpose(weights.data() + t * in_.channels * out_.channels, in_.channels, out_.channels,
                        turned.data() + t * in_.channels * out_.channels);
    back_packed_.resize(static_cast<std::size_t>(kernel::packed_size(taps_ * out_.channels, in_.channels)));
    kernel::pack(turned.data(), in_.channels, 1, taps_ * out_.channels, in_.channels, 1.0f, back_packed_.data());
  }

  void forward(Pass& p) const override {
    kernel::Gemm g;
    g.m = out_.positions, g.n = out_.channels, g.taps = taps_, g.run = in_.channels;
    g.a = p.values.data() + in_.offset, g.lda = in_.channels;
    if (!offsets_.empty()) g.offsets = offsets_.data();
    g.zeros = zeros_.data();
    g.b = packed_.data(), g.bias = bias_.data();
    g.c = p.values.data() + out_.offset, g.ldc = out_.channels;
    kernels_.gemm(g);
  }
  void backward(Pass& p) const override {
    const float* in = p.values.data() + in_.offset;
    const float* d = p.gradients.data() + out_.offset;
    const float* left = in;
    if (!offsets_.empty()) {
      const auto run = static_cast<std::size_t>(in_.channels);
      float* to = p.scratch.data();
      left = to;
      for (const std::int32_t at : offsets_) {
        if (at < 0) {
          std::fill_n(to, run, 0.0f);
        } else {
          std::copy_n(in + at, run, to);
        }
        to += run;
      }
    }
    training_.outer(left, depth(), d, out_.channels, out_.positions, depth(), out_.channels,
                    p.parameters[first_].data());
    float* bias = p.parameters[first_ + 1].data();
    for (Index o = 0; o < out_.positions; ++o)
      kernels_.binary(kernel::Binary::add, bias, 1, d + o * out_.channels, 1, bias, out_.channels);
    if (!in_.learns) return;
    kernel::Gemm g;
    g.m = in_.positions, g.n = in_.channels, g.taps = taps_, g.run = out_.channels;
    g.a = d, g.lda = out_.channels;
    g.offsets = back_.data(), g.zeros = zeros_.data();
    g.b = back_packed_.data();
    g.c = p.gradients.data() + in_.offset, g.ldc = in_.channels;
    g.residual = g.c, g.ldr = g.ldc;
    kernels_.gemm(g);
  }

 private:
  Slot in_, out_;
  Index taps_;
  std::size_t first_;  // of the parameters: weights, then bias
  std::vector<std::int32_t> offsets_, back_;
  const kernel::Kernels& kernels_;
  const kernel::TrainingKernels& training_;
  std::vector<float> zeros_, packed_, back_packed_, bias_;
};

/// A depthwise convolution. Weights are [tap][channel].
class DepthwiseStep final : public TrainStep {
 public:
  DepthwiseStep(const Slot& in, const Slot& out, std::vector<std::int32_t> offsets, Index taps,
                std::size_t first_parameter, const std::vector<Parameter>& parameters)
      : in_(in), out_(out), taps_(taps), first_(first_parameter), offsets_(std::move(offsets)), all_(parameters) {}

  void forward(Pass& p) const override {
    const float *w = all_[first_].value.data(), *bias = all_[first_ + 1].value.data();
    each([&](Index o, Index t, Index at) {
      float* to = p.values.data() + out_.offset + o * out_.channels;
      const float* from = p.values.data() + in_.offset + at;
      if (t == 0) std::copy_n(bias, out_.channels, to);
      for (Index c = 0; at >= 0 && c < out_.channels; ++c) to[c] += from[c] * w[t * out_.channels + c];
    });
  }
  void backward(Pass& p) const override {
    const float* w = all_[first_].value.data();
    float *dw = p.parameters[first_].data(), *bias = p.parameters[first_ + 1].data();
    each([&](Index o, Index t, Index at) {
      const float* d = p.gradients.data() + out_.offset + o * out_.channels;
      for (Index c = 0; t == 0 && c < out_.channels; ++c) bias[c] += d[c];
      if (at < 0) return;
      const float* from = p.values.data() + in_.offset + at;
      float* to = p.gradients.data() + in_.offset + at;
      for (Index c = 0; c < out_.channels; ++c) {
        dw[t * out_.channels + c] += d[c] * from[c];
        if (in_.learns) to[c] += d[c] * w[t * out_.channels + c];
      }
    });
  }

 private:
  template <class F>
  void each(F&& f) const {
    for (Index o = 0; o < out_.positions; ++o) {
      for (Index t = 0; t < taps_; ++t) f(o, t, Index{offsets_[static_cast<std::size_t>(o * taps_ + t)]});
    }
  }

  Slot in_, out_;
  Index taps_;
  std::size_t first_;
  std::vector<std::int32_t> offsets_;
  const std::vector<Parameter>& all_;
};

/// A function of one element. Its slope is taken by a central difference in double precision.
class UnaryStep final : public TrainStep {
 public:
  UnaryStep(const Slot& in, const Slot& out, const UnaryFunction& f, float alpha, float beta,
            const kernel::Kernels& kernels, const kernel::TrainingKernels& training)
      : in_(in),
        out_(out),
        f_(f),
        alpha_(static_cast<double>(alpha)),
        beta_(static_cast<double>(beta)),
        kernels_(kernels),
        training_(training) {}

  void forward(Pass& p) const override {
    const float* x = p.values.data() + in_.offset;
    float* y = p.values.data() + out_.offset;
    if (is_relu()) return kernels_.unary(f_.kernel, x, y, out_.count(), 0, 0);
    for (Index i = 0; i < out_.count(); ++i)
      y[i] = static_cast<float>(f_.real(static_cast<double>(x[i]), alpha_, beta_));
  }
  void backward(Pass& p) const override {
    const float *x = p.values.data() + in_.offset, *d = p.gradients.data() + out_.offset;
    float* to = p.gradients.data() + in_.offset;
    if (is_relu()) return training_.relu_gradient(x, d, to, out_.count());
    for (Index i = 0; i < out_.count(); ++i) {
      const auto at = static_cast<double>(x[i]);
      constexpr double step = 1e-5;
      to[i] += d[i] *
               static_cast<float>((f_.real(at + step, alpha_, beta_) - f_.real(at - step, alpha_, beta_)) / (2 * step));
    }
  }

 private:
  bool is_relu() const noexcept { return f_.kernel == kernel::Unary::relu; }

  Slot in_, out_;
  const UnaryFunction& f_;
  double alpha_, beta_;
  const kernel::Kernels& kernels_;
  const kernel::TrainingKernels& training_;
};

/// Limits from below and above; outside them the slope is zero.
class ClipStep final : public TrainStep {
 public:
  ClipStep(const Slot& in, const Slot& out, float low, float high) : in_(in), out_(out), low_(low), high_(high) {}

  void forward(Pass& p) const override {
    for (Index i = 0; i < out_.count(); ++i)
      p.values[static_cast<std::size_t>(out_.offset + i)] =
          std::clamp(p.values[static_cast<std::size_t>(in_.offset + i)], low_, high_);
  }
  void backward(Pass& p) const override {
    for (Index i = 0; i < out_.count(); ++i) {
      const auto from = static_cast<std::size_t>(in_.offset + i);
      if (p.values[from] > low_ && p.values[from] < high_)
        p.gradients[from] += p.gradients[static_cast<std::size_t>(out_.offset + i)];
    }
  }

 private:
  Slot in_, out_;
  float low_, high_;
};

/// An operand of a BinaryStep: a value, or a constant; `map` says which element belongs to each output, and is empty
/// where that is the same one.
struct Operand {
  Slot slot;
  std::vector<float> constant;
  std::vector<std::int32_t> map;
};

/// Add, Sub, Mul and Div, with broadcasting.
class BinaryStep final : public TrainStep {
 public:
  BinaryStep(Operand a, Operand b, const Slot& out, char op, const kernel::Kernels& kernels)
      : a_(std::move(a)), b_(std::move(b)), out_(out), op_(op), kernels_(kernels) {}

  void forward(Pass& p) const override {
    const float *a = elements(a_, p), *b = elements(b_, p);
    float* y = p.values.data() + out_.offset;
    if (is_plain_sum()) return kernels_.binary(kernel::Binary::add, a, 1, b, 1, y, out_.count());
    for (Index i = 0; i < out_.count(); ++i) {
      const float u = a[at(a_, i)], v = b[at(b_, i)];
      y[i] = op_ == '+' ? u + v : op_ == '-' ? u - v : op_ == '*' ? u * v : u / v;
    }
  }
  void backward(Pass& p) const override {
    const float *a = elements(a_, p), *b = elements(b_, p);
    const float* d = p.gradients.data() + out_.offset;
    if (is_plain_sum()) {
      for (const Operand* o : {&a_, &b_}) {
        float* to = p.gradients.data() + o->slot.offset;
        if (learns(*o)) kernels_.binary(kernel::Binary::add, to, 1, d, 1, to, out_.count());
      }
      return;
    }
    const bool sum = op_ == '+' || op_ == '-';
    if (learns(a_)) {
      float* to = p.gradients.data() + a_.slot.offset;
      for (Index i = 0; i < out_.count(); ++i)
        to[at(a_, i)] += sum ? d[i] : op_ == '*' ? d[i] * b[at(b_, i)] : d[i] / b[at(b_, i)];
    }
    if (learns(b_)) {
      float* to = p.gradients.data() + b_.slot.offset;
      for (Index i = 0; i < out_.count(); ++i) {
        const float u = a[at(a_, i)], v = b[at(b_, i)];
        to[at(b_, i)] += op_ == '+' ? d[i] : op_ == '-' ? -d[i] : op_ == '*' ? d[i] * u : -d[i] * u / (v * v);
      }
    }
  }

 private:
  bool is_plain_sum() const noexcept { return op_ == '+' && a_.map.empty() && b_.map.empty(); }
  static bool learns(const Operand& o) noexcept { return o.constant.empty() && o.slot.learns; }
  static const float* elements(const Operand& o, const Pass& p) noexcept {
    return o.constant.empty() ? p.values.data() + o.slot.offset : o.constant.data();
  }
  static Index at(const Operand& o, Index i) noexcept { return o.map.empty() ? i : o.map[static_cast<std::size_t>(i)]; }

  Operand a_, b_;
  Slot out_;
  char op_;
  const kernel::Kernels& kernels_;
};

/// Elements moved about: each output is one element of the pass, or zero.
class MoveStep final : public TrainStep {
 public:
  MoveStep(const Slot& out, std::vector<std::int32_t> from, bool learns)
      : out_(out), from_(std::move(from)), learns_(learns) {}

  void forward(Pass& p) const override {
    for (std::size_t i = 0; i < from_.size(); ++i)
      p.values[static_cast<std::size_t>(out_.offset) + i] =
          from_[i] < 0 ? 0.0f : p.values[static_cast<std::size_t>(from_[i])];
  }
  void backward(Pass& p) const override {
    for (std::size_t i = 0; learns_ && i < from_.size(); ++i) {
      if (from_[i] >= 0)
        p.gradients[static_cast<std::size_t>(from_[i])] += p.gradients[static_cast<std::size_t>(out_.offset) + i];
    }
  }

 private:
  Slot out_;
  std::vector<std::int32_t> from_;
  bool learns_;
};

/// Maximum or average over windows.
class PoolStep final : public TrainStep {
 public:
  PoolStep(const Slot& in, const Slot& out, std::vector<std::int32_t> offsets, Index taps, bool maximum,
           bool count_padding)
      : in_(in), out_(out), taps_(taps), maximum_(maximum), offsets_(std::move(offsets)) {
    for (Index o = 0; o < out.positions; ++o) {
      Index inside = 0;
      for (Index t = 0; t < taps; ++t) inside += offsets_[static_cast<std::size_t>(o * taps + t)] >= 0;
      share_.push_back(1.0f / static_cast<float>(count_padding ? taps : std::max<Index>(1, inside)));
    }
  }

  void forward(Pass& p) const override {
    const float* x = p.values.data() + in_.offset;
    float* y = p.values.data() + out_.offset;
    for (Index o = 0; o < out_.positions; ++o, y += out_.channels) {
      std::fill_n(y, out_.channels, maximum_ ? -std::numeric_limits<float>::infinity() : 0.0f);
      for (Index t = 0; t < taps_; ++t) {
        const Index at = offsets_[static_cast<std::size_t>(o * taps_ + t)];
        if (at < 0) continue;
        for (Index c = 0; c < out_.channels; ++c) y[c] = maximum_ ? std::max(y[c], x[at + c]) : y[c] + x[at + c];
      }
      if (maximum_) continue;
      for (Index c = 0; c < out_.channels; ++c) y[c] *= share_[static_cast<std::size_t>(o)];
    }
  }
  void backward(Pass& p) const override {
    const float* x = p.values.data() + in_.offset;
    const float* y = p.values.data() + out_.offset;
    const float* d = p.gradients.data() + out_.offset;
    float* to = p.gradients.data() + in_.offset;
    for (Index o = 0; o < out_.positions; ++o, y += out_.channels, d += out_.channels) {
      if (maximum_) {
        for (Index c = 0; c < out_.channels; ++c) {
          for (Index t = 0; t < taps_; ++t) {  // the first that holds the maximum
            const Index at = offsets_[static_cast<std::size_t>(o * taps_ + t)];
            if (at < 0 || x[at + c] != y[c]) continue;
            to[at + c] += d[c];
            break;
          }
        }
        continue;
      }
      for (Index t = 0; t < taps_; ++t) {
        const Index at = offsets_[static_cast<std::size_t>(o * taps_ + t)];
        if (at < 0) continue;
        for (Index c = 0; c < out_.channels; ++c) to[at + c] += d[c] * share_[static_cast<std::size_t>(o)];
      }
    }
  }

 private:
  Slot in_, out_;
  Index taps_;
  bool maximum_;
  std::vector<std::int32_t> offsets_;
  std::vector<float> share_;
};

}  // namespace detail

/// A network that learns. Made of a graph from `simplified`; raises an Error that names the node whose operator cannot
/// be trained through.
class TrainableNetwork {
 public:
  TrainableNetwork(Graph graph, ValueId answer, const ModelOptions& options)
      : graph_(with_outputs(std::move(graph), {answer})),
        options_(options),
        kernels_(kernel::kernels_for(options.isa)),
        training_(kernel::training_kernels_for(options.isa)),
        shapes_(infer_batch(graph_, options, 1)) {
    OFFRAMP_REQUIRE(graph_.inputs.size() == 1, "a network in training has one input");
    slots_.resize(graph_.values.size());
    reserve(graph_.inputs[0], false);
    for (const Node& n : graph_.nodes) at_node(n, [&] { add(n); });
    OFFRAMP_REQUIRE(slot(graph_.outputs[0]).learns, "the network has no weights to train");
    for (const auto& s : steps_) scratch_ = std::max(scratch_, s->scratch());
    pack();
  }
  TrainableNetwork(const TrainableNetwork&) = delete;
  TrainableNetwork& operator=(const TrainableNetwork&) = delete;

  Index sample_size() const noexcept { return slot(graph_.inputs[0]).count(); }
  Index classes() const noexcept { return slot(graph_.outputs[0]).count(); }
  std::vector<Parameter>& parameters() noexcept { return parameters_; }

  Pass make_pass() const {
    Pass p;
    p.values.assign(static_cast<std::size_t>(floats_), 0.0f);
    p.gradients = p.values;
    p.scratch.resize(static_cast<std::size_t>(scratch_));
    for (const Parameter& q : parameters_) p.parameters.emplace_back(q.value.size(), 0.0f);
    return p;
  }

  /// Runs one sample, channels first; the scores are good until the pass runs again.
  std::span<const float> forward(std::span<const float> sample, Pass& p) const {
    const auto& in = slot(graph_.inputs[0]);
    if (in.positions == 1) {
      std::copy(sample.begin(), sample.end(), p.values.begin() + in.offset);
    } else {
      kernel::transpose(sample.data(), in.channels, in.positions, p.values.data() + in.offset);
    }
    for (const auto& s : steps_) s->forward(p);
    return std::span(p.values).subspan(static_cast<std::size_t>(slot(graph_.outputs[0]).offset),
                                       static_cast<std::size_t>(classes()));
  }
  /// A value of the sample that a pass ran last, channels last.
  std::span<const float> value(ValueId v, const Pass& p) const noexcept {
    return std::span(p.values).subspan(static_cast<std::size_t>(slot(v).offset),
                                       static_cast<std::size_t>(slot(v).count()));
  }
  /// Adds the gradients by the parameters to the pass, for the sample that it ran last. `more()` may add
  /// to gradients by inner values (`gradient`) before they are handed on.
  void backward(std::span<const float> d_scores, Pass& p) const {
    backward(d_scores, p, [] {});
  }
  template <class More>
  void backward(std::span<const float> d_scores, Pass& p, More&& more) const {
    std::fill(p.gradients.begin(), p.gradients.end(), 0.0f);
    std::copy(d_scores.begin(), d_scores.end(), p.gradients.begin() + slot(graph_.outputs[0]).offset);
    more();
    for (std::size_t i = steps_.size(); i-- > first_learning_;) steps_[i]->backward(p);
  }
  /// The gradient by a value, channels last.
  std::span<float> gradient(ValueId v, Pass& p) const noexcept {
    return std::span(p.gradients)
        .subspan(static_cast<std::size_t>(slot(v).offset), static_cast<std::size_t>(slot(v).count()));
  }
  /// One step of Adam, the `count`-th, on the sum of what the passes gathered.
  void step(std::span<Pass> passes, float rate, std::int64_t count, const Adam& adam = {}) {
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      for (Pass& p : passes) {
        std::vector<float>& g = p.parameters[i];
        for (std::size_t k = 0; k < g.size(); ++k) parameters_[i].gradient[k] += g[k];
        std::fill(g.begin(), g.end(), 0.0f);
      }
      if (!fixed_[i]) adam.step(parameters_[i], rate, count);
    }
    pack();
  }
  /// Packs the weights after they have changed.
  void pack() {
    for (detail::ProductStep* s : products_)
      s->pack(parameters_[s->first_parameter()].value, parameters_[s->first_parameter() + 1].value);
  }

  /// `g`, a graph with nodes of the same names, with the weights as they are now.
  Graph write(Graph g) const {
    std::map<std::string, const Trained*> of;
    for (const Trained& t : trained_) of[t.node] = &t;
    for (Node& n : g.nodes) {
      const auto i = of.find(n.name);
      if (i == of.end()) continue;
      const Trained& t = *i->second;
      const auto& w = parameters_[t.first].value;
      Tensor weights(DType::f32, t.shape), bias(DType::f32, {t.outs});
      auto* to = static_cast<float*>(weights.mutable_data());
      for (Index o = 0; o < t.outs; ++o) {
        for (Index i_c = 0; i_c < t.ins; ++i_c) {
          for (Index tap = 0; tap < t.taps; ++tap)
            to[t.in_file(o, i_c, tap)] = w[static_cast<std::size_t>(t.here(o, i_c, tap))];
        }
      }
      std::copy_n(parameters_[t.first + 1].value.data(), t.outs, static_cast<float*>(bias.mutable_data()));
      n.inputs[1] = g.add_constant(n.name + "_trained_weight", weights);
      if (n.op == "MatMul") continue;
      n.inputs.resize(std::max<std::size_t>(3, n.inputs.size()), no_value);
      n.inputs[2] = g.add_constant(n.name + "_trained_bias", bias);
    }
    g.remove_dead_nodes();
    return g;
  }

 private:
  // How the weights of a node stand in its file and in training.
  struct Trained {
    std::string node;
    Shape shape;
    Index outs = 0, ins = 0, taps = 1;
    bool turned = false;  // [in][out] in the file
    bool depthwise = false;
    std::size_t first = 0;

    Index in_file(Index o, Index i, Index t) const noexcept { return turned ? i * outs + o : (o * ins + i) * taps + t; }
    Index here(Index o, Index i, Index t) const noexcept { return depthwise ? t * outs + o : (t * ins + i) * outs + o; }
  };

  const Shape& shape(ValueId v) const { return shapes_.views[static_cast<std::size_t>(v)].shape; }
  const detail::Slot& slot(ValueId v) const { return slots_[static_cast<std::size_t>(v)]; }
  const detail::Slot& reserve(ValueId v, bool learns) {
    const Shape& s = shape(v);
    OFFRAMP_REQUIRE(shapes_.views[static_cast<std::size_t>(v)].type == DType::f32 && s.rank() >= 1,
                    "'" + graph_[v].name + "' is no float32 tensor of samples");
    detail::Slot& to = slots_[static_cast<std::size_t>(v)];
    to.channels = s.rank() >= 3 ? s[1] : s.count();
    to.positions = s.rank() >= 3 ? s.count(2, s.rank()) : 1;
    to.offset = floats_;
    to.learns = learns;
    floats_ += (to.count() + 15) / 16 * 16;
    OFFRAMP_REQUIRE(floats_ < Index{1} << 30, "one sample takes more than 2^30 numbers");
    if (learns && first_learning_ == none) first_learning_ = steps_.size();
    return to;
  }
  bool is_variable(ValueId v) const {
    return v != no_value && shapes_.views[static_cast<std::size_t>(v)].data == nullptr;
  }
  const detail::Slot& source(const Node& n, std::size_t i) const {
    OFFRAMP_REQUIRE(is_variable(n.input(i)) && slot(n.inputs[i]).offset >= 0,
                    "cannot be trained through: input " + std::to_string(i) + " is not computed by a layer");
    return slot(n.inputs[i]);
  }

  void add(const Node& n) {
    if (std::none_of(n.inputs.begin(), n.inputs.end(), [&](ValueId v) { return is_variable(v); })) return;
    OFFRAMP_REQUIRE(n.domain.empty() && n.outputs.size() == 1, "cannot be trained through");
    if (n.op == "Conv" || n.op == "Gemm" || n.op == "MatMul") return add_product(n);
    if (n.op == "Add" || n.op == "Sub" || n.op == "Mul" || n.op == "Div") return add_binary(n);
    if (n.op == "Clip") return add_clip(n);
    if (n.op == "MaxPool" || n.op == "AveragePool" || n.op == "GlobalAveragePool" || n.op == "GlobalMaxPool")
      return add_pool(n);
    if (const UnaryFunction* f = find_unary(n.op); f && n.op != "Shrink") {
      const detail::Slot in = source(n, 0), out = reserve(n.outputs[0], in.learns);
      const float beta = n.real(n.op == "Selu" ? "gamma" : "beta", f->beta);
      steps_.push_back(
          std::make_unique<detail::UnaryStep>(in, out, *f, n.real("alpha", f->alpha), beta, kernels_, training_));
      return;
    }
    for (const char* moves :
         {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Pad", "Concat", "Dropout"}) {
      if (n.op == moves) return add_move(n);
    }
    raise("cannot be trained through");
  }

  void add_product(const Node& n) {
    OFFRAMP_REQUIRE(n.input(1) != no_value && graph_.is_constant(n.inputs[1]) &&
                        graph_[n.inputs[1]].constant.type() == DType::f32 && n.integer("transA", 0) == 0 &&
                        n.real("alpha", 1) == 1.0f && n.real("beta", 1) == 1.0f,
                    "cannot be trained: its weights are not constant float32");
    const Tensor w = graph_[n.inputs[1]].constant;
    const detail::Slot in = source(n, 0), out = reserve(n.outputs[0], true);
    Trained t;
    t.node = n.name;
    t.shape = w.shape();
    t.first = parameters_.size();
    std::vector<std::int32_t> offsets;
    if (n.op == "Conv") {
      const Index group = n.integer("group", 1);
      t.outs = w.shape()[0], t.ins = w.shape()[1];
      t.depthwise = group > 1;
      OFFRAMP_REQUIRE(!t.depthwise || (group == t.outs && group == in.channels),
                      "cannot be trained: a grouped convolution that is not depthwise");
      const Window window = WindowAttributes(n).resolve(shape(n.inputs[0]), w.shape(), false);
      window.check_sizes(in.channels);
      t.taps = window.taps();
      if (t.depthwise || !window.is_pointwise()) offsets = window.offsets(in.channels, false);
    } else {
      t.turned = n.op == "MatMul" || n.integer("transB", 0) == 0;
      OFFRAMP_REQUIRE(w.shape().rank() == 2 && shape(n.inputs[0]).rank() == 2, "cannot be trained: no matrix of rows");
      t.outs = w.shape()[t.turned ? 1 : 0], t.ins = w.shape()[t.turned ? 0 : 1];
    }
    Parameter weights, bias;
    weights.resize(w.count());
    weights.decays = true;
    for (Index o = 0; o < t.outs; ++o) {
      for (Index i = 0; i < t.ins; ++i) {
        for (Index tap = 0; tap < t.taps; ++tap)
          weights.value[static_cast<std::size_t>(t.here(o, i, tap))] = w.view().f32()[t.in_file(o, i, tap)];
      }
    }
    bias.resize(t.outs);
    if (n.input(2) != no_value) {
      OFFRAMP_REQUIRE(graph_.is_constant(n.inputs[2]), "cannot be trained: its bias is not constant");
      const Tensor& b = graph_[n.inputs[2]].constant;
      for (Index o = 0; o < t.outs; ++o)
        bias.value[static_cast<std::size_t>(o)] = static_cast<float>(real_at(b.view(), b.count() == 1 ? 0 : o));
    }
    parameters_.push_back(std::move(weights));
    parameters_.push_back(std::move(bias));
    fixed_.push_back(false);
    fixed_.push_back(n.op == "MatMul");  // has no bias to write it to
    if (t.depthwise) {
      steps_.push_back(
          std::make_unique<detail::DepthwiseStep>(in, out, std::move(offsets), t.taps, t.first, parameters_));
    } else {
      auto step =
          std::make_unique<detail::ProductStep>(in, out, std::move(offsets), t.taps, t.first, kernels_, training_);
      products_.push_back(step.get());
      steps_.push_back(std::move(step));
    }
    trained_.push_back(std::move(t));
  }

  void add_binary(const Node& n) {
    bool learns = false;
    for (std::size_t i = 0; i < 2; ++i) learns = learns || (is_variable(n.input(i)) && slot(n.inputs[i]).learns);
    const Shape& to = shape(n.outputs[0]);
    const auto operand = [&](std::size_t i) {
      detail::Operand o;
      const ValueId v = n.input(i);
      OFFRAMP_REQUIRE(v != no_value, "input " + std::to_string(i) + " is missing");
      const Shape& from = shape(v);
      const bool varies = is_variable(v);
      if (varies) {
        o.slot = source(n, i);
      } else {
        const TensorView& x = shapes_.views[static_cast<std::size_t>(v)];
        for (Index k = 0; k < x.count(); ++k) o.constant.push_back(static_cast<float>(real_at(x, k)));
      }
      if (varies && from == to) return o;
      o.map.resize(static_cast<std::size_t>(to.count()));
      for (Index k = 0; k < to.count(); ++k) {
        Index rest = k, at = 0, step = 1;
        for (int a = to.rank() - 1; a >= 0; --a) {
          const int b = a - (to.rank() - from.rank());
          const Index coordinate = rest % to[a];
          rest /= to[a];
          if (b < 0) continue;
          if (from[b] != 1) at += coordinate * step;
          step *= from[b];
        }
        o.map[static_cast<std::size_t>(detail::channels_last(to, k))] =
            static_cast<std::int32_t>(varies ? detail::channels_last(from, at) : at);
      }
      return o;
    };
    detail::Operand a = operand(0), b = operand(1);
    const detail::Slot out = reserve(n.outputs[0], learns);
    const char op = n.op == "Add" ? '+' : n.op == "Sub" ? '-' : n.op == "Mul" ? '*' : '/';
    steps_.push_back(std::make_unique<detail::BinaryStep>(std::move(a), std::move(b), out, op, kernels_));
  }

  void add_clip(const Node& n) {
    const auto limit = [&](std::size_t i, const char* attribute, float otherwise) {
      if (n.input(i) == no_value) return n.real(attribute, otherwise);
      OFFRAMP_REQUIRE(graph_.is_constant(n.inputs[i]), "cannot be trained through: its limits are not constant");
      return static_cast<float>(real_at(graph_[n.inputs[i]].constant.view(), 0));
    };
    constexpr float infinity = std::numeric_limits<float>::infinity();
    const float low = limit(1, "min", -infinity), high = limit(2, "max", infinity);
    OFFRAMP_REQUIRE(low <= high, "cannot be trained through: its limits leave nothing between them");
    const detail::Slot in = source(n, 0), out = reserve(n.outputs[0], in.learns);
    steps_.push_back(std::make_unique<detail::ClipStep>(in, out, low, high));
  }

  void add_pool(const Node& n) {
    const detail::Slot in = source(n, 0), out = reserve(n.outputs[0], in.learns);
    const bool maximum = n.op == "MaxPool" || n.op == "GlobalMaxPool";
    std::vector<std::int32_t> offsets;
    Index taps = in.positions;
    if (n.op.starts_with("Global")) {
      for (Index i = 0; i < in.positions; ++i) offsets.push_back(static_cast<std::int32_t>(i * in.channels));
    } else {
      const Window w = WindowAttributes(n).resolve(shape(n.inputs[0]), false);
      w.check_sizes(in.channels);
      taps = w.taps();
      offsets = w.offsets(in.channels, false);
    }
    steps_.push_back(std::make_unique<detail::PoolStep>(in, out, std::move(offsets), taps, maximum,
                                                        n.integer("count_include_pad", 0) != 0));
  }

  // Lets the operator itself move numbers that say where they come from.
  void add_move(const Node& n) {
    std::vector<Tensor> numbered;
    std::vector<std::pair<ValueId, Index>> origin;  // the first number of each input
    std::vector<TensorView> in;
    Index next = 1;
    bool learns = false;
    for (std::size_t i = 0; i < n.inputs.size(); ++i) {
      const ValueId v = n.inputs[i];
      if (v == no_value || !is_variable(v)) {
        in.push_back(v == no_value ? TensorView{} : shapes_.views[static_cast<std::size_t>(v)]);
        OFFRAMP_REQUIRE(v == no_value || n.op != "Concat", "cannot be trained through: it joins constants");
        continue;
      }
      learns = learns || source(n, i).learns;
      Tensor t(DType::f32, shape(v));
      for (Index k = 0; k < t.count(); ++k) static_cast<float*>(t.mutable_data())[k] = static_cast<float>(next + k);
      origin.emplace_back(v, next);
      next += t.count();
      numbered.push_back(std::move(t));
      in.push_back(numbered.back().view());
    }
    OFFRAMP_REQUIRE(next < Index{1} << 24, "cannot be trained through: more than 2^24 elements");
    const std::vector<Tensor> moved =
        offramp::detail::compute(graph_, n, in, {options_.operators, kernels_, options_.limits, {kernels_}});
    const detail::Slot to = reserve(n.outputs[0], learns);
    std::vector<std::int32_t> from(static_cast<std::size_t>(to.count()), -1);
    for (Index k = 0; k < to.count(); ++k) {
      const auto number = static_cast<Index>(moved[0].view().f32()[k]);
      if (number <= 0) continue;
      const auto i = std::find_if(origin.rbegin(), origin.rend(), [&](const auto& o) { return o.second <= number; });
      from[static_cast<std::size_t>(detail::channels_last(shape(n.outputs[0]), k))] =
          static_cast<std::int32_t>(slot(i->first).offset + detail::channels_last(shape(i->first), number - i->second));
    }
    steps_.push_back(std::make_unique<detail::MoveStep>(to, std::move(from), learns));
  }

  static constexpr std::size_t none = static_cast<std::size_t>(-1);

  Graph graph_;
  ModelOptions options_;
  const kernel::Kernels& kernels_;
  const kernel::TrainingKernels& training_;
  Inference shapes_;
  std::vector<detail::Slot> slots_;
  std::vector<std::unique_ptr<detail::TrainStep>> steps_;
  std::vector<detail::ProductStep*> products_;
  std::vector<Parameter> parameters_;
  std::vector<bool> fixed_;
  std::vector<Trained> trained_;

  std::size_t first_learning_ = none;
  Index floats_ = 0, scratch_ = 0;
};

}  // namespace offramp::fit

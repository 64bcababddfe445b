/// @file recurrent.hpp
/// ONNX RNN, GRU and LSTM, one or both directions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "offramp/core/config.hpp"
#include "offramp/kernel/pack.hpp"
#include "offramp/layer/dense.hpp"
#include "offramp/layer/elementwise.hpp"

namespace offramp {

/// One recurrent layer. Inputs: X [T,N,I], W [D,G*H,I], R [D,G*H,H], B [D,2*G*H], sequence_lens [N], initial_h [D,N,H],
/// and for LSTM initial_c [D,N,H] and P [D,3*H]; with `layout` 1 the batch stands first. Gates are in ONNX's order:
/// GRU z r h, LSTM i o f c.
class RecurrentOperation final : public Operation {
 public:
  OFFRAMP_COLD RecurrentOperation(const Node& node, Index)
      : kind_(node.op == "LSTM"  ? Kind::lstm
              : node.op == "GRU" ? Kind::gru
                                 : Kind::rnn),
        gates_(kind_ == Kind::lstm  ? 4
               : kind_ == Kind::gru ? 3
                                    : 1),
        hidden_(node.integer("hidden_size", 0)),
        clip_(node.real("clip", 0)),
        linear_before_reset_(node.integer("linear_before_reset", 0) != 0),
        input_forget_(node.integer("input_forget", 0) != 0),
        batch_first_(node.integer("layout", 0) != 0),
        direction_(node.text("direction", "forward")) {
    OFFRAMP_REQUIRE(direction_ == "forward" || direction_ == "reverse" || direction_ == "bidirectional",
                    "direction '" + direction_ + "' is unknown");
    const auto directions = static_cast<std::size_t>(this->directions());
    const std::size_t each = kind_ == Kind::lstm ? 3 : kind_ == Kind::gru ? 2 : 1;
    const auto* names = node.get<std::vector<std::string>>("activations");
    const auto alpha = node.reals("activation_alpha"), beta = node.reals("activation_beta");
    OFFRAMP_REQUIRE(!names || names->size() == each * directions,
                    "expected " + std::to_string(each * directions) + " activations");
    for (std::size_t i = 0; i < each * directions; ++i) {
      const char* usual = kind_ != Kind::rnn && i % each == 0 ? "Sigmoid" : "Tanh";
      const std::string name = names ? (*names)[i] : usual;
      const UnaryFunction* f = find_unary(name);
      OFFRAMP_REQUIRE(f != nullptr, "activation '" + name + "' is unknown");
      activations_.push_back({f, i < alpha.size() ? alpha[i] : f->alpha, i < beta.size() ? beta[i] : f->beta});
    }
  }

  InputUse use(std::size_t i) const noexcept override {
    return i == 1 || i == 2 || i == 3 || i == 7 ? InputUse::parameter : InputUse::data;
  }
  bool has_packed(std::size_t i) const noexcept override { return i == 1 || i == 2; }
  OFFRAMP_COLD void infer(std::span<const TensorView> in, std::span<TensorView> out) const override {
    const TensorView &x = float_input(in, 0), &w = float_input(in, 1), &r = float_input(in, 2);
    require_rank(x, 3, 3, "X");
    require_rank(w, 3, 3, "W");
    require_rank(r, 3, 3, "R");
    const Index d = directions(), h = r.shape[2], steps = x.shape[batch_first_ ? 1 : 0],
                batch = x.shape[batch_first_ ? 0 : 1];
    OFFRAMP_REQUIRE(hidden_ == 0 || hidden_ == h,
                    "hidden_size " + std::to_string(hidden_) + " does not fit R " + r.shape.text());
    OFFRAMP_REQUIRE(h > 0 && checked_product(h, 8) > 0, "R " + r.shape.text() + " is empty");
    const auto expect = [](const TensorView& t, const Shape& s, const char* what) {
      OFFRAMP_REQUIRE(t.shape == s, std::string(what) + ": expected shape " + s.text() + ", found " + t.shape.text());
    };
    expect(w, {d, gates_ * h, x.shape[2]}, "W");
    expect(r, {d, gates_ * h, h}, "R");
    if (optional_input(in, 3)) expect(float_input(in, 3), {d, 2 * gates_ * h}, "B");
    if (const TensorView* lengths = optional_input(in, 4)) {
      OFFRAMP_REQUIRE(lengths->type == DType::i32 || lengths->type == DType::i64, "sequence_lens must be integers");
      expect(*lengths, {batch}, "sequence_lens");
    }
    const Shape state = batch_first_ ? Shape{batch, d, h} : Shape{d, batch, h};
    if (optional_input(in, 5)) expect(float_input(in, 5), state, "initial_h");
    if (kind_ == Kind::lstm && optional_input(in, 6)) expect(float_input(in, 6), state, "initial_c");
    if (kind_ == Kind::lstm && optional_input(in, 7)) expect(float_input(in, 7), {d, 3 * h}, "P");
    set_output(out[0], DType::f32, batch_first_ ? Shape{batch, steps, d, h} : Shape{steps, d, batch, h});
    for (std::size_t i = 1; i < out.size(); ++i) set_output(out[i], DType::f32, state);
  }
  void prepare(std::span<const TensorView> in, const PrepareOptions&) override {
    const TensorView &w = in[1], &r = in[2];
    const TensorView* b = optional_input(in, 3);
    OFFRAMP_REQUIRE(w.data && r.data && (!b || b->data), "weights must be known before the network runs");
    const Index h = r.shape[2], inputs = w.shape[2], n = gates_ * h;
    input_.clear();
    state_.clear();
    for (Index d = 0; d < directions(); ++d) {
      // Both biases go into the input's product, but for GRU's hidden gate when it is applied before the reset.
      std::vector<float> wb(static_cast<std::size_t>(n), 0.0f), rb(static_cast<std::size_t>(n), 0.0f);
      for (Index i = 0; b && i < n; ++i) {
        const auto u = static_cast<std::size_t>(i);
        wb[u] = b->f32()[d * 2 * n + i];
        (kind_ == Kind::gru && linear_before_reset_ && i >= 2 * h ? rb[u] : wb[u]) += b->f32()[d * 2 * n + n + i];
      }
      input_.emplace_back(inputs, n, w.f32() + d * n * inputs, 1, inputs, 1.0f, wb.data(), FusedTail());
      const bool split = kind_ == Kind::gru && !linear_before_reset_;  // the hidden gate needs r * h first
      const Index first = split ? 2 * h : n;
      state_.emplace_back(h, first, r.f32() + d * n * h, 1, h, 1.0f, rb.data(), FusedTail());
      if (split) state_.emplace_back(h, h, r.f32() + (d * n + first) * h, 1, h, 1.0f, rb.data(), FusedTail());
    }
  }
  Cost cost(std::span<const TensorView> in, std::span<const TensorView>) const noexcept override {
    const Index h = in[2].shape[2], rows = in[0].shape[0] * in[0].shape[1] * directions();
    const Index macs = rows * gates_ * h * (in[0].shape[2] + h);
    return {macs, 2 * macs + rows * h * tail_flops(), 0};
  }
  Index executed(std::span<const TensorView> in, std::span<const TensorView>) const noexcept override {
    const Index h = in[2].shape[2], rows = in[0].shape[0] * in[0].shape[1] * directions();
    return rows * (2 * kernel::padded_columns(gates_ * h) * (in[0].shape[2] + h) + 25 * gates_ * h + tail_flops() * h);
  }
  std::size_t scratch_bytes(std::span<const TensorView> in, std::span<const TensorView> out,
                            Index) const noexcept override {
    const Index h = in[2].shape[2], steps_and_batch = in[0].shape[0] * in[0].shape[1],
                batch = in[0].shape[batch_first_ ? 0 : 1];
    const Index n = gates_ * h;
    static_cast<void>(out);
    return static_cast<std::size_t>(steps_and_batch * n + batch * (n + 3 * h) + (batch_first_ ? in[0].count() : 0) +
                                    5 * 16) *
           sizeof(float);
  }

  bool forward(const OperationRun& run) const noexcept override {
    const TensorView &x = run.in[0], &r = run.in[2];
    const TensorView *lengths = optional_input(run.in, 4), *h0 = optional_input(run.in, 5),
                     *c0 = optional_input(run.in, 6);
    const TensorView* peepholes = kind_ == Kind::lstm ? optional_input(run.in, 7) : nullptr;
    const Index steps = x.shape[batch_first_ ? 1 : 0], batch = x.shape[batch_first_ ? 0 : 1], inputs = x.shape[2];
    const Index h = r.shape[2], n = gates_ * h, count = directions();
    auto* scratch = reinterpret_cast<float*>(run.scratch);
    const auto take = [&](Index size) {
      float* p = scratch;
      scratch += (size + 15) / 16 * 16;
      return p;
    };
    float *projected = take(steps * batch * n), *product = take(batch * n), *hidden = take(batch * h);
    float *cell = take(batch * h), *reset = take(batch * h);
    const float* sequence = x.f32();
    if (batch_first_) {  // [N,T,I] to [T,N,I]
      float* to = take(x.count());
      for (Index t = 0; t < steps; ++t) {
        for (Index b = 0; b < batch; ++b)
          std::memcpy(to + (t * batch + b) * inputs, x.f32() + (b * steps + t) * inputs,
                      static_cast<std::size_t>(inputs) * sizeof(float));
      }
      sequence = to;
    }
    for (Index b = 0; lengths && b < batch; ++b) {
      if (integer_at(*lengths, b) < 0 || integer_at(*lengths, b) > steps) return false;
    }
    for (Index d = 0; d < count; ++d) {
      const bool backward = direction_ == "reverse" || d == 1;
      const auto du = static_cast<std::size_t>(d);
      const bool split = kind_ == Kind::gru && !linear_before_reset_;
      const DensePlan& recurrent = state_[split ? 2 * du : du];
      const auto state_at = [&](Index b) { return batch_first_ ? (b * count + d) * h : (d * batch + b) * h; };
      for (Index b = 0; b < batch; ++b) {
        const auto bytes = static_cast<std::size_t>(h) * sizeof(float);
        h0 ? std::memcpy(hidden + b * h, h0->f32() + state_at(b), bytes) : std::memset(hidden + b * h, 0, bytes);
        c0 ? std::memcpy(cell + b * h, c0->f32() + state_at(b), bytes) : std::memset(cell + b * h, 0, bytes);
      }
      input_[du].forward(sequence, nullptr, projected, steps * batch, run.kernels);
      for (Index s = 0; s < steps; ++s) {
        // A sequence read backwards starts at its own end; all of a batch are stepped together where they are equal.
        recurrent.forward(hidden, nullptr, product, batch, run.kernels);
        for (Index b = 0; b < batch; ++b) {
          const Index length = lengths ? integer_at(*lengths, b) : steps;
          const bool live = s < length;
          const Index t = backward ? (live ? length - 1 - s : s) : s;
          float* state = hidden + b * h;
          if (live) {
            float* gates = projected + (t * batch + b) * n;
            step(d, gates, product + b * recurrent.outputs(), state, cell + b * h, reset,
                 peepholes ? peepholes->f32() + d * 3 * h : nullptr, h, run.kernels);
          }
          if (run.out[0].data) {
            float* y = run.out[0].as<float>() +
                       (batch_first_ ? ((b * steps + t) * count + d) * h : ((t * count + d) * batch + b) * h);
            live ? std::memcpy(y, state, static_cast<std::size_t>(h) * sizeof(float))
                 : std::memset(y, 0, static_cast<std::size_t>(h) * sizeof(float));
          }
        }
      }
      for (Index b = 0; b < batch; ++b) {
        const auto bytes = static_cast<std::size_t>(h) * sizeof(float);
        if (run.out.size() > 1 && run.out[1].data)
          std::memcpy(run.out[1].as<float>() + state_at(b), hidden + b * h, bytes);
        if (run.out.size() > 2 && run.out[2].data)
          std::memcpy(run.out[2].as<float>() + state_at(b), cell + b * h, bytes);
      }
    }
    return true;
  }

 private:
  enum class Kind { rnn, gru, lstm };
  struct Activation {
    const UnaryFunction* f;
    float alpha, beta;
  };

  // Gates, state update and output, for each element of the state.
  Index tail_flops() const noexcept { return kind_ == Kind::lstm ? 9 : kind_ == Kind::gru ? 8 : 2; }
  Index directions() const noexcept { return direction_ == "bidirectional" ? 2 : 1; }

  void activate(const Activation& a, float* x, Index n, const kernel::Kernels& kernels) const noexcept {
    if (clip_ > 0) {
      for (Index i = 0; i < n; ++i) x[i] = std::clamp(x[i], -clip_, clip_);
    }
    if (a.f->kernel != kernel::Unary::count) {
      kernels.unary(a.f->kernel, x, x, n, a.alpha, a.beta);
    } else {
      for (Index i = 0; i < n; ++i)
        x[i] = static_cast<float>(
            a.f->real(static_cast<double>(x[i]), static_cast<double>(a.alpha), static_cast<double>(a.beta)));
    }
  }

  // One step of one sample. `gates` holds W x + b and is overwritten, `product` holds R h.
  void step(Index d, float* gates, const float* product, float* h, float* c, float* reset, const float* p, Index n,
            const kernel::Kernels& kernels) const noexcept {
    const auto first = static_cast<std::size_t>(d) * activations_.size() / static_cast<std::size_t>(directions());
    const Activation* f = &activations_[first];
    if (kind_ == Kind::rnn) {
      for (Index i = 0; i < n; ++i) h[i] = gates[i] + product[i];
      activate(f[0], h, n, kernels);
    } else if (kind_ == Kind::gru) {
      for (Index i = 0; i < 2 * n; ++i) gates[i] += product[i];
      activate(f[0], gates, 2 * n, kernels);
      const float *z = gates, *r = gates + n;
      float* candidate = gates + 2 * n;
      if (linear_before_reset_) {
        for (Index i = 0; i < n; ++i) candidate[i] += r[i] * product[2 * n + i];
      } else {
        for (Index i = 0; i < n; ++i) reset[i] = r[i] * h[i];
        state_[2 * static_cast<std::size_t>(d) + 1].forward(reset, candidate, candidate, 1, kernels);
      }
      activate(f[1], candidate, n, kernels);
      for (Index i = 0; i < n; ++i) h[i] = (1 - z[i]) * candidate[i] + z[i] * h[i];
    } else {
      for (Index i = 0; i < 4 * n; ++i) gates[i] += product[i];
      float *in = gates, *out = gates + n, *forget = gates + 2 * n, *candidate = gates + 3 * n;
      for (Index i = 0; p && i < n; ++i) {
        in[i] += p[i] * c[i];
        forget[i] += p[2 * n + i] * c[i];
      }
      activate(f[0], in, n, kernels);
      activate(f[0], forget, n, kernels);
      activate(f[1], candidate, n, kernels);
      for (Index i = 0; i < n; ++i) {
        if (input_forget_) forget[i] = 1 - in[i];
        c[i] = forget[i] * c[i] + in[i] * candidate[i];
        if (p) out[i] += p[n + i] * c[i];
      }
      activate(f[0], out, n, kernels);
      std::memcpy(h, c, static_cast<std::size_t>(n) * sizeof(float));
      activate(f[2], h, n, kernels);
      for (Index i = 0; i < n; ++i) h[i] *= out[i];
    }
  }

  Kind kind_;
  Index gates_, hidden_;
  float clip_;
  bool linear_before_reset_, input_forget_, batch_first_;
  std::string direction_;
  std::vector<Activation> activations_;
  std::vector<DensePlan> input_, state_;
};

}  // namespace offramp

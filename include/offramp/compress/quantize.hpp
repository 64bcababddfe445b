/// @file quantize.hpp
/// Post-training quantization to bytes from inputs without labels: a network in the QDQ form that every ONNX runtime
/// reads, and that this library computes in integers from end to end.
///
/// Activations are unsigned bytes with one scale a tensor, weights signed bytes with one a channel; both ranges are
/// those of the least squared error. Biases take back what rounding the weights adds on average (Nagel et al. 2019,
/// arXiv 1906.04721, section 4.2). In networks with depthwise convolutions channels are scaled against their readers
/// first (section 4.1 there, by activations as Xiao et al. 2023, arXiv 2211.10438, do).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "offramp/compress/observe.hpp"

namespace offramp {

/// How the range of an activation is chosen.
enum class RangeChoice : std::uint8_t {
  squared_error,  ///< least mean squared error
  percentile,     ///< all but the outermost
  extremes,       ///< all that was seen
};

/// Samples that are plenty to find the ranges of activations by.
inline constexpr Index samples_for_ranges = 512;

struct QuantizeOptions {
  ModelOptions model;
  RangeChoice range = RangeChoice::squared_error;
  double percentile = 0.9999;
  bool correct_bias = true;
  bool equalize = true;            ///< where the network has depthwise convolutions
  double max_disagreement = 0.01;  ///< on the samples; layers that suffer most stay in float until it holds
  std::vector<std::string> keep;   ///< names of nodes that stay in float
  Index batch = 16;                ///< samples at a time
};

/// One convolution or product of a network that was quantized.
struct QuantizedLayer {
  std::string name, op;
  bool in_float = false;
  double error = 0;  ///< squared error of the answers where this layer alone is in bytes, as a share of their power;
                     ///< computed only where layers had to stay in float
};

struct QuantizeResult {
  Graph graph;
  std::vector<QuantizedLayer> layers;
  double agreement = 1;  ///< of the last output's answers with the network in float, on the samples
  Index samples = 0;
};

namespace detail {

/// A convolution or a product by a constant matrix.
inline bool is_product(const Graph& g, const Node& n) {
  return n.domain.empty() && (n.op == "Conv" || n.op == "Gemm" || n.op == "MatMul") && has_constant_weights(g, n) &&
         (n.op != "Gemm" || (n.integer("transA", 0) == 0 && n.real("alpha", 1) == 1.0f && n.real("beta", 1) == 1.0f)) &&
         (n.op != "MatMul" || g[n.input(1)].constant.shape().rank() == 2) &&
         (n.input(2) == no_value || g.is_constant(n.input(2)));
}
inline bool is_activation(const Node& n) {
  return n.op == "Relu" || n.op == "Clip";
}
inline bool moves_bytes(const Node& n) {
  return n.op == "MaxPool" || n.op == "Reshape" || n.op == "Flatten" || n.op == "Transpose" || n.op == "Slice" ||
         n.op == "Squeeze" || n.op == "Unsqueeze" || (n.op == "Pad" && n.text("mode", "constant") == "constant");
}

/// What was seen of a value.
struct Seen {
  float low = 0, high = 0;
  std::vector<double> histogram;     // of equal bins from low to high
  std::vector<double> channel_mean;  // along axis 1, or along the last of two
};

/// What of a network goes to bytes.
enum class QuantizedPart : std::uint8_t { backbone, heads };

/// Quantizes one graph whose nodes have names.
class Quantizer {
 public:
  /// The backbone is what `answer` needs; heads are the rest, of which `layers` say how they are done in float.
  Quantizer(Graph g, ValueId answer, QuantizedPart part, std::span<const float> samples, const QuantizeOptions& o,
            std::span<const LayerInfo> layers = {})
      : g_(std::move(g)), part_(part), samples_(samples), o_(o), shapes_(infer_batch(g_, o_.model, shapes_batch)) {
    in_part_ = g_.ancestors_of(answer);
    if (part == QuantizedPart::heads) {
      in_part_.flip();
      keep_one_on_each_path(layers);
    }
    for (std::size_t i = 0; i < g_.nodes.size(); ++i) {
      if (in_part_[i] && is_product(g_, g_.nodes[i])) products_.push_back(g_.nodes[i].name);
    }
  }

  const std::vector<std::string>& products() const noexcept { return products_; }
  const Graph& graph() const noexcept { return g_; }

  /// Scales channels of convolutions against their readers.
  void equalize() {
    const bool has_depthwise = std::any_of(g_.nodes.begin(), g_.nodes.end(), [&](const Node& n) {
      return is_product(g_, n) && n.op == "Conv" && n.integer("group", 1) > 1;
    });
    if (!has_depthwise) return;
    struct Pair {
      std::size_t first, second;
      ValueId between;
    };
    std::vector<Pair> pairs;
    std::vector<ValueId> values;
    passes::Matcher m(g_);
    std::map<ValueId, std::size_t> reader;
    for (std::size_t i = 0; i < g_.nodes.size(); ++i) {
      for (const ValueId v : g_.nodes[i].inputs) reader[v] = i;
    }
    for (std::size_t i = 0; i < g_.nodes.size(); ++i) {
      if (!is_product(g_, g_.nodes[i]) || g_.nodes[i].op != "Conv") continue;
      ValueId v = g_.nodes[i].outputs[0];
      if (!m.is_private(v)) continue;
      std::size_t next = reader[v];
      if (g_.nodes[next].op == "Relu") {
        v = g_.nodes[next].outputs[0];
        if (!m.is_private(v)) continue;
        next = reader[v];
      }
      if (!is_product(g_, g_.nodes[next]) || g_.nodes[next].op != "Conv") continue;
      pairs.push_back({i, next, v});
      values.push_back(v);
    }
    if (pairs.empty()) return;
    std::vector<std::vector<float>> largest(values.size());
    watch_values(g_, o_.model, values, samples_, o_.batch, [&](std::size_t i, const TensorView& x) {
      const Index channels = x.shape[1], inner = x.shape.count(2, x.shape.rank());
      largest[i].resize(static_cast<std::size_t>(channels), 0.0f);
      for (Index n = 0; n < x.shape[0]; ++n) {
        for (Index c = 0; c < channels; ++c) {
          for (Index p = 0; p < inner; ++p) {
            float& most = largest[i][static_cast<std::size_t>(c)];
            most = std::max(most, std::fabs(x.f32()[(n * channels + c) * inner + p]));
          }
        }
      }
    });
    for (std::size_t i = 0; i < pairs.size(); ++i) scale_between(pairs[i].first, pairs[i].second, largest[i]);
  }

  /// Looks at all values that may be quantized.
  void observe() {
    plan({});
    std::vector<ValueId> values(quantized_.begin(), quantized_.end());
    seen_.clear();
    watch_values(g_, o_.model, values, samples_, o_.batch, [&](std::size_t i, const TensorView& x) {
      Seen& s = seen_[values[i]];
      const int axis = channel_axis(x);
      const Index channels = x.shape[axis], inner = x.shape.count(axis + 1, x.shape.rank());
      const Index outer = x.shape.count(0, axis);
      s.channel_mean.resize(static_cast<std::size_t>(channels), 0.0);
      for (Index o = 0; o < outer; ++o) {
        for (Index c = 0; c < channels; ++c) {
          double sum = 0;
          for (Index p = 0; p < inner; ++p) {
            const float v = x.f32()[(o * channels + c) * inner + p];
            OFFRAMP_REQUIRE(std::isfinite(v), "'" + g_[values[i]].name + "' is not finite on these samples");
            s.low = std::min(s.low, v);
            s.high = std::max(s.high, v);
            sum += static_cast<double>(v);
          }
          s.channel_mean[static_cast<std::size_t>(c)] += sum / static_cast<double>(inner);
        }
      }
      counted_[values[i]] += outer;
    });
    for (auto& [v, s] : seen_) {
      for (double& x : s.channel_mean) x /= static_cast<double>(std::max<Index>(1, counted_[v]));
      s.histogram.assign(bins, 0.0);
    }
    watch_values(g_, o_.model, values, samples_, o_.batch, [&](std::size_t i, const TensorView& x) {
      Seen& s = seen_[values[i]];
      const float width = (s.high - s.low) / static_cast<float>(bins);
      if (!(width > 0)) return;
      for (Index k = 0; k < x.count(); ++k) {
        const auto b = static_cast<Index>((x.f32()[k] - s.low) / width);
        s.histogram[static_cast<std::size_t>(std::clamp<Index>(b, 0, bins - 1))] += 1;
      }
    });
  }

  /// The quantized graph, with these nodes in float.
  Graph write(const std::set<std::string>& in_float) {
    plan(in_float);
    std::map<ValueId, passes::ByteScale> scale;
    for (const ValueId v : quantized_) {
      const ValueId root = find(v);
      if (!scale.contains(root)) scale[root] = choose(root);
    }
    Graph out = g_;
    std::map<ValueId, ValueId> twin;
    std::vector<Node> nodes;
    const auto add = [&](std::string op, std::string name, std::vector<ValueId> in, ValueId to) {
      Node n;
      n.op = std::move(op);
      n.name = std::move(name);
      n.inputs = std::move(in);
      n.outputs = {to};
      nodes.push_back(std::move(n));
    };
    const auto quantize = [&](ValueId v) {
      const passes::ByteScale s = scale.at(find(v));
      const std::string base = out[v].name;
      const ValueId factor = out.add_constant(base + "_scale", Tensor::of<float>({}, std::vector<float>{s.scale}));
      Tensor z(DType::u8, {});
      put_integer({DType::u8, {}, z.mutable_data()}, 0, s.zero);
      const ValueId zero = out.add_constant(base + "_zero_point", z);
      const ValueId bytes = out.add_value(base + "_quantized"), real = out.add_value(base + "_dequantized");
      add("QuantizeLinear", base + "_QuantizeLinear", {v, factor, zero}, bytes);
      add("DequantizeLinear", base + "_DequantizeLinear", {bytes, factor, zero}, real);
      twin[v] = real;
    };
    // To steps, with ramps between them.
    const auto quantize_ramped = [&](ValueId v) {
      const passes::ByteScale s = scale.at(find(v));
      const kernel::RampedRounding by{1 / s.scale, s.zero};
      const std::string base = out[v].name;
      const auto number = [&](const char* what, float x) {
        return out.add_constant(base + what, Tensor::of<float>({}, std::vector<float>{x}));
      };
      const auto step = [&](const char* op, const char* what, std::vector<ValueId> in) {
        const ValueId to = out.add_value(base + what);
        add(op, base + what + "_" + op, std::move(in), to);
        return to;
      };
      const ValueId steps = step("Mul", "_scaled", {v, number("_steps", by.factor)});
      const ValueId inside = step("Clip", "_bounded", {steps, number("_low", by.low()), number("_high", by.high())});
      const ValueId whole = step("Round", "_rounded", {inside});
      const ValueId rest = step("Sub", "_rest", {inside, whole});
      const ValueId flat = step("Clip", "_flat", {rest, number("_least", -by.flat()), number("_most", by.flat())});
      const ValueId bent = step("Sub", "_bent", {rest, flat});
      const ValueId line = step("Mul", "_ramp", {bent, number("_slope", 0.5f / by.ramp)});
      twin[v] = step("Add", "_ramped", {whole, line});
    };
    const auto keep = [&](ValueId v) { part_ == QuantizedPart::heads ? quantize_ramped(v) : quantize(v); };
    for (const ValueId v : out.inputs) {
      if (quantized_.contains(v)) keep(v);
    }
    for (std::size_t i = 0; i < g_.nodes.size(); ++i) {
      Node n = g_.nodes[i];
      // Whoever reads a value that is quantized reads it back from its bytes, so that only one form of it is kept. Not
      // so the backbone where heads are quantized: it must not change.
      const bool reads_bytes = part_ == QuantizedPart::backbone || integer_[i];
      for (ValueId& v : n.inputs) {
        if (reads_bytes && v != no_value && twin.contains(v)) v = twin.at(v);
      }
      if (integer_[i]) {
        if (is_product(g_, g_.nodes[i])) weights(out, nodes, n, g_.nodes[i], scale.at(find(g_.nodes[i].inputs[0])));
      }
      nodes.push_back(n);
      for (const ValueId v : n.outputs) {
        if (v != no_value && quantized_.contains(v)) keep(v);
      }
    }
    out.nodes = std::move(nodes);
    out.opset = std::max<Index>(out.opset, 13);
    return out;
  }

 private:
  static constexpr Index bins = 2048;
  static constexpr Index shapes_batch = 2;

  ValueId find(ValueId v) {
    while (group_.contains(v) && group_[v] != v) v = group_[v];
    return v;
  }

  // Which nodes compute in bytes, which values are quantized, and which of those share a scale.
  void plan(const std::set<std::string>& in_float) {
    integer_.assign(g_.nodes.size(), false);
    quantized_.clear();
    group_.clear();
    std::map<ValueId, std::size_t> producer;
    for (std::size_t i = 0; i < g_.nodes.size(); ++i) {
      for (const ValueId v : g_.nodes[i].outputs) producer[v] = i;
    }
    const auto kept = [&](const Node& n) {
      return !in_part_[static_cast<std::size_t>(&n - g_.nodes.data())] || in_float.contains(n.name) ||
             std::find(o_.keep.begin(), o_.keep.end(), n.name) != o_.keep.end();
    };
    // Whether a value comes out of something that computes in bytes.
    const auto from_bytes = [&](ValueId v) {
      while (producer.contains(v) && is_activation(g_.nodes[producer[v]])) v = g_.nodes[producer[v]].inputs[0];
      return producer.contains(v) && integer_[producer[v]];
    };
    for (std::size_t i = 0; i < g_.nodes.size(); ++i) {
      const Node& n = g_.nodes[i];
      if (kept(n) || !n.domain.empty()) continue;
      if (is_product(g_, n)) {
        integer_[i] = true;
      } else if (n.op == "Add" && n.inputs.size() == 2) {
        integer_[i] = !g_.is_constant(n.inputs[0]) && !g_.is_constant(n.inputs[1]) && n.inputs[0] != n.inputs[1] &&
                      shape(n.inputs[0]) == shape(n.inputs[1]) && shape(n.inputs[0]).rank() >= 2 &&
                      from_bytes(n.inputs[0]) && from_bytes(n.inputs[1]);
      } else if (n.op == "GlobalAveragePool" || (moves_bytes(n) && n.outputs.size() == 1)) {
        integer_[i] = from_bytes(n.inputs[0]);
      } else if (n.op == "Concat") {
        integer_[i] = std::all_of(n.inputs.begin(), n.inputs.end(), from_bytes);
      }
    }
    // Additions and moves that nothing in bytes reads would only go back and forth.
    std::map<ValueId, std::vector<std::size_t>> readers;
    for (std::size_t i = 0; i < g_.nodes.size(); ++i) {
      for (const ValueId v : g_.nodes[i].inputs) readers[v].push_back(i);
    }
    const auto read_by_bytes = [&](ValueId v, auto&& self) -> bool {
      for (const std::size_t r : readers[v]) {
        if (integer_[r] || (is_activation(g_.nodes[r]) && self(g_.nodes[r].outputs[0], self))) return true;
      }
      return false;
    };
    for (std::size_t i = g_.nodes.size(); i-- > 0;) {
      if (integer_[i] && !is_product(g_, g_.nodes[i]))
        integer_[i] = read_by_bytes(g_.nodes[i].outputs[0], read_by_bytes);
    }
    for (std::size_t i = 0; i < g_.nodes.size(); ++i) {
      if (!integer_[i]) continue;
      for (const ValueId v : g_.nodes[i].inputs) {
        if (v != no_value && !g_.is_constant(v) && type(v) == DType::f32) quantized_.insert(v);
      }
    }
    // What only moves elements hands its scale on.
    for (std::size_t i = 0; i < g_.nodes.size(); ++i) {
      const Node& n = g_.nodes[i];
      if (!integer_[i] || !(moves_bytes(n) || n.op == "Concat")) continue;
      quantized_.insert(n.outputs[0]);
      for (const ValueId v : n.inputs) {
        if (v != no_value && quantized_.contains(v) && find(v) != find(n.outputs[0]))
          group_[find(n.outputs[0])] = find(v);
      }
    }
    // An addition's sum goes to bytes at once, unless an activation follows, which then does.
    for (std::size_t i = 0; i < g_.nodes.size(); ++i) {
      const Node& n = g_.nodes[i];
      if (!integer_[i] || !(n.op == "Add" || n.op == "GlobalAveragePool")) continue;
      ValueId v = n.outputs[0];
      while (readers[v].size() == 1 && is_activation(g_.nodes[readers[v][0]])) v = g_.nodes[readers[v][0]].outputs[0];
      quantized_.insert(v);
    }
  }

  // The byte scale of least squared error for what was seen of all values of a group.
  passes::ByteScale choose(ValueId root) {
    float low = 0, high = 0;
    std::vector<const Seen*> all;
    for (const ValueId v : quantized_) {
      if (find(v) != root || !seen_.contains(v)) continue;
      all.push_back(&seen_[v]);
      low = std::min(low, all.back()->low);
      high = std::max(high, all.back()->high);
    }
    if (!(high - low > 0)) return {1.0f, 0, DType::u8};
    const auto scale_for = [](float l, float h) {
      passes::ByteScale s;
      s.scale = std::max((h - l) / 255.0f, std::numeric_limits<float>::min() * 1e6f);
      s.zero = static_cast<std::int32_t>(std::clamp(std::nearbyint(-l / s.scale), 0.0f, 255.0f));
      return s;
    };
    if (o_.range == RangeChoice::extremes) return scale_for(low, high);
    const auto each_bin = [&](auto&& f) {
      for (const Seen* s : all) {
        const float width = (s->high - s->low) / static_cast<float>(bins);
        for (std::size_t b = 0; b < s->histogram.size(); ++b) {
          if (s->histogram[b] > 0) f(s->low + (static_cast<float>(b) + 0.5f) * width, s->histogram[b]);
        }
      }
    };
    if (o_.range == RangeChoice::percentile) {
      std::vector<std::pair<float, double>> sorted;
      double total = 0;
      each_bin([&](float x, double n) {
        sorted.emplace_back(x, n);
        total += n;
      });
      std::sort(sorted.begin(), sorted.end());
      double before = 0;
      float l = low, h = high;
      for (const auto& [x, n] : sorted) {
        if (before <= (1 - o_.percentile) * total) l = std::min(0.0f, x);
        before += n;
        if (before <= o_.percentile * total) h = std::max(0.0f, x);
      }
      return scale_for(std::max(l, low), std::min(h > 0 ? h : high, high));
    }
    passes::ByteScale best = scale_for(low, high);
    double least = std::numeric_limits<double>::infinity();
    for (int step = 0; step < 40; ++step) {
      const float f = 1 - 0.02f * static_cast<float>(step);
      const passes::ByteScale s = scale_for(low * f, high * f);
      double error = 0;
      const float l = s.low(), h = s.high();
      each_bin([&](float x, double n) {
        const float q = std::clamp(std::nearbyint(x / s.scale), l, h);
        const double d = static_cast<double>(q * s.scale - x);
        error += n * d * d;
      });
      if (error < least) least = error, best = s;
    }
    return best;
  }

  // Gives a product dequantized weights and bias.
  void weights(Graph& out, std::vector<Node>& nodes, Node& n, const Node& source, const passes::ByteScale& x) {
    const Tensor& w = g_[source.inputs[1]].constant;
    const bool by_row = n.op == "Conv" || (n.op == "Gemm" && n.integer("transB", 0) != 0);
    const int axis = by_row ? 0 : 1;
    const Index channels = w.shape()[axis], count = w.count(), each = channels > 0 ? count / channels : 0;
    const auto at = [&](Index c, Index i) { return by_row ? c * each + i : i * channels + c; };
    std::vector<float> bias(static_cast<std::size_t>(channels), 0.0f);
    const bool has_bias = source.input(2) != no_value;
    if (has_bias) {
      const TensorView b = g_[source.input(2)].constant.view();
      for (Index c = 0; c < channels; ++c)
        bias[static_cast<std::size_t>(c)] = static_cast<float>(real_at(b, b.count() == 1 ? 0 : c));
    }
    float largest = 0;
    for (Index i = 0; i < count; ++i) largest = std::max(largest, std::fabs(w.view().f32()[i]));
    OFFRAMP_REQUIRE(std::isfinite(largest), "the weights of '" + n.name + "' are not finite");
    if (largest == 0) largest = 1;
    std::vector<std::int8_t> bytes(static_cast<std::size_t>(count));
    std::vector<float> scales;
    std::vector<std::int32_t> biases;
    const Seen& in = seen_[source.inputs[0]];
    for (Index c = 0; c < channels; ++c) {
      float most = 0;
      for (Index i = 0; i < each; ++i) most = std::max(most, std::fabs(w.view().f32()[at(c, i)]));
      most = std::max(most, 1e-5f * largest);
      float best = most / 127;
      double least = std::numeric_limits<double>::infinity();
      for (int step = 0; step < 15; ++step) {
        const float s = most * (1 - 0.02f * static_cast<float>(step)) / 127;
        double error = 0;
        for (Index i = 0; i < each; ++i) {
          const float v = w.view().f32()[at(c, i)];
          const double d = static_cast<double>(std::clamp(std::nearbyint(v / s), -127.0f, 127.0f) * s - v);
          error += d * d;
        }
        if (error < least) least = error, best = s;
      }
      // A bias must fit 32 bits in units of the sums.
      best = std::max(best, std::fabs(bias[static_cast<std::size_t>(c)]) / x.scale / 1e9f);
      double drift = 0;
      for (Index i = 0; i < each; ++i) {
        const float v = w.view().f32()[at(c, i)];
        const float q = std::clamp(std::nearbyint(v / best), -127.0f, 127.0f);
        bytes[static_cast<std::size_t>(at(c, i))] = static_cast<std::int8_t>(q);
        drift += static_cast<double>(q * best - v) * mean_of(in, n, w, channels, c, i);
      }
      double corrected = static_cast<double>(bias[static_cast<std::size_t>(c)]);
      if (o_.correct_bias) corrected -= drift;
      const double unit = static_cast<double>(x.scale) * static_cast<double>(best);
      biases.push_back(
          static_cast<std::int32_t>(std::clamp(std::nearbyint(corrected / unit), -2147483647.0, 2147483647.0)));
      scales.push_back(best);
    }
    const std::string base = n.name;
    const auto dequantize = [&](const char* what, Tensor values, const std::vector<float>& s, Index along) {
      const Index size = static_cast<Index>(s.size());
      const DType t = values.type();
      const ValueId v = out.add_constant(base + what, std::move(values));
      const ValueId factor = out.add_constant(base + what + "_scale", Tensor::of<float>({size}, s));
      const ValueId zero = out.add_constant(base + what + "_zero_point", Tensor(t, {size}));
      Node d;
      d.op = "DequantizeLinear";
      d.name = base + what + "_DequantizeLinear";
      d.inputs = {v, factor, zero};
      d.outputs = {out.add_value(base + what + "_dequantized")};
      d.set("axis", along);
      nodes.push_back(d);
      return d.outputs[0];
    };
    std::vector<float> units;
    for (const float s : scales) units.push_back(x.scale * s);
    // Heads read their input in steps, not in its own unit.
    n.inputs[1] = dequantize("_weight", Tensor::of<std::int8_t>(w.shape(), bytes),
                             part_ == QuantizedPart::heads ? units : scales, axis);
    if (n.op == "MatMul") return;  // has no bias of its own; a drift of its mean stays
    n.inputs.resize(3, no_value);
    n.inputs[2] = dequantize("_bias", Tensor::of<std::int32_t>({channels}, biases), units, 0);
  }

  // The mean of what weight i of channel c is multiplied by.
  static double mean_of(const Seen& in, const Node& n, const Tensor& w, Index channels, Index c, Index i) {
    if (in.channel_mean.empty()) return 0;
    Index channel = i;
    if (n.op == "Conv") {
      const Index taps = w.shape().count(2, w.shape().rank()), in_group = w.shape()[1];
      const Index group = c / std::max<Index>(1, channels / n.integer("group", 1));
      channel = group * in_group + i / taps;
    }
    return channel < static_cast<Index>(in.channel_mean.size()) ? in.channel_mean[static_cast<std::size_t>(channel)]
                                                                : 0;
  }

  void scale_between(std::size_t first, std::size_t second, const std::vector<float>& largest) {
    const Tensor a = g_[g_.nodes[first].inputs[1]].constant, b = g_[g_.nodes[second].inputs[1]].constant;
    const Index channels = a.shape()[0];
    if (static_cast<Index>(largest.size()) != channels) return;
    const Index group = g_.nodes[second].integer("group", 1), in_group = b.shape()[1];
    const Index outs = b.shape()[0], taps = b.shape().count(2, b.shape().rank());
    const auto each_reader = [&](Index c, auto&& f) {
      const Index g = c / in_group, local = c % in_group, out_group = outs / group;
      for (Index o = g * out_group; o < (g + 1) * out_group; ++o) {
        for (Index t = 0; t < taps; ++t) f((o * in_group + local) * taps + t);
      }
    };
    // Depthwise readers have a scale for each channel: equal activations are free. Others share the cost.
    const double power = in_group == 1 && outs == channels ? 1.0 : 0.5;
    std::vector<float> factor;
    double mean = 0;
    Index counted = 0;
    for (Index c = 0; c < channels; ++c) {
      float weight = 0;
      each_reader(c, [&](Index i) { weight = std::max(weight, std::fabs(b.view().f32()[i])); });
      const double x = static_cast<double>(largest[static_cast<std::size_t>(c)]);
      const double f =
          power == 1.0 ? x : std::sqrt(x * static_cast<double>(weight)) / std::max(1e-12, static_cast<double>(weight));
      factor.push_back(static_cast<float>(f));
      if (f > 0) mean += std::log(f), ++counted;
    }
    if (counted == 0) return;
    mean = std::exp(mean / static_cast<double>(counted));
    Tensor wa(DType::f32, a.shape()), wb(DType::f32, b.shape());
    std::copy_n(a.view().f32(), a.count(), static_cast<float*>(wa.mutable_data()));
    std::copy_n(b.view().f32(), b.count(), static_cast<float*>(wb.mutable_data()));
    const ValueId bias = g_.nodes[first].input(2);
    Tensor ba;
    if (bias != no_value) {
      ba = Tensor(DType::f32, g_[bias].constant.shape());
      std::copy_n(g_[bias].constant.view().f32(), ba.count(), static_cast<float*>(ba.mutable_data()));
    }
    const Index each = a.count() / std::max<Index>(1, channels);
    for (Index c = 0; c < channels; ++c) {
      const float raw = factor[static_cast<std::size_t>(c)];
      const float f = raw > 0 ? std::clamp(raw / static_cast<float>(mean), 0.05f, 20.0f) : 1.0f;
      for (Index i = 0; i < each; ++i) static_cast<float*>(wa.mutable_data())[c * each + i] /= f;
      if (bias != no_value) static_cast<float*>(ba.mutable_data())[c] /= f;
      each_reader(c, [&](Index i) { static_cast<float*>(wb.mutable_data())[i] *= f; });
    }
    g_.nodes[first].inputs[1] = g_.add_constant(g_.nodes[first].name + "_equalized_weight", wa);
    if (bias != no_value) g_.nodes[first].inputs[2] = g_.add_constant(g_.nodes[first].name + "_equalized_bias", ba);
    g_.nodes[second].inputs[1] = g_.add_constant(g_.nodes[second].name + "_equalized_reader", wb);
    shapes_ = infer_batch(g_, o_.model, shapes_batch);
  }

  const Shape& shape(ValueId v) const { return shapes_.views[static_cast<std::size_t>(v)].shape; }
  DType type(ValueId v) const { return shapes_.views[static_cast<std::size_t>(v)].type; }

  Index macs_of(const Node& n) const {
    const Index outs = shape(n.outputs[0])[n.op == "Conv" ? 1 : shape(n.outputs[0]).rank() - 1];
    return outs > 0 ? shape(n.outputs[0]).count() / outs * g_[n.inputs[1]].constant.count() : 0;
  }
  // Executed FLOPs that a product saves which reads and writes floats but is done in bytes, four of which cost as much
  // as one in float; none where there are so few that one more layer is what counts.
  double saved_by_bytes(const Node& n, std::span<const LayerInfo> layers) const {
    constexpr Index least = 50'000, side_by_side = 4;
    constexpr double to_round = 32;  // a number, measured: by ramps, with what lies on them
    if (!is_product(g_, n) || n.integer("group", 1) != 1 || macs_of(n) < least * shapes_batch) return 0;
    const auto macs = static_cast<double>(macs_of(n) / shapes_batch),
               inputs = static_cast<double>(shape(n.inputs[0]).count() / shapes_batch);
    const auto layer = std::find_if(layers.begin(), layers.end(), [&](const LayerInfo& l) { return l.name == n.name; });
    const double executed = layer == layers.end() ? 2 * macs : static_cast<double>(layer->cost.executed);
    return executed - 2 * macs / side_by_side - to_round * inputs;
  }

  // Of products that read one another only the one that saves most: each rounding makes what differs before it some 20
  // times larger.
  void keep_one_on_each_path(std::span<const LayerInfo> layers) {
    std::vector<std::size_t> paying;
    std::vector<double> saved(g_.nodes.size(), 0.0);
    for (std::size_t i = 0; i < g_.nodes.size(); ++i) {
      if (in_part_[i]) saved[i] = saved_by_bytes(g_.nodes[i], layers);
      if (saved[i] > 0) paying.push_back(i);
      in_part_[i] = false;
    }
    std::stable_sort(paying.begin(), paying.end(), [&](std::size_t a, std::size_t b) { return saved[a] > saved[b]; });
    std::vector<std::pair<std::size_t, std::vector<bool>>> kept;  // with what they read
    for (const std::size_t i : paying) {
      std::vector<bool> reads = g_.ancestors_of(g_.nodes[i].outputs[0]);
      const bool alone =
          std::none_of(kept.begin(), kept.end(), [&](const auto& k) { return reads[k.first] || k.second[i]; });
      if (!alone) continue;
      in_part_[i] = true;
      kept.emplace_back(i, std::move(reads));
    }
  }

  Graph g_;
  QuantizedPart part_;
  std::span<const float> samples_;
  const QuantizeOptions& o_;
  Inference shapes_;
  std::vector<std::string> products_;
  std::vector<bool> in_part_;  // of each node
  std::vector<bool> integer_;
  std::set<ValueId> quantized_;
  std::map<ValueId, ValueId> group_;
  std::map<ValueId, Seen> seen_;
  std::map<ValueId, Index> counted_;
};

}  // namespace detail

/// Quantizes the products of exit heads where that saves time, by inputs without labels, and leaves the rest of the
/// network as it is: a strided convolution in float costs twice its share of FLOPs beside a backbone that runs by
/// Winograd's algorithm, in bytes about its share. Inputs are rounded by ramps (`kernel::RampedRounding`), once on each
/// path, so that another runtime's logits are these within 1e-4. What a head says changes a little, so a policy and a
/// certificate that the network carries go: thresholds are to be chosen anew. A network whose heads have nothing to
/// quantize comes back as it was.
inline Graph quantize_heads(const Model& model, std::span<const float> samples, const QuantizeOptions& options = {}) {
  OFFRAMP_REQUIRE(model.has_plan() && model.exit_count() > 0, "the network is no classifier with one float32 input");
  detail::check_samples(samples, model.sample_size());
  Graph g = model.graph();
  detail::name_nodes(g);
  const ValueId answer = detail::answer_of(g, model);
  detail::Quantizer q(std::move(g), answer, detail::QuantizedPart::heads, samples, options, model.layers());
  if (q.products().empty()) return model.graph();
  q.observe();
  Graph bytes = q.write({options.keep.begin(), options.keep.end()});
  for (const char* key : {"offramp.policy", "offramp.certificate"}) bytes.metadata.erase(key);
  bytes.metadata.try_emplace("offramp.quantized", "int8 heads");
  return bytes;
}

/// Quantizes a network by inputs without labels: whole samples in NCHW order. Its exit heads stay in float.
inline QuantizeResult quantize(const Model& model, std::span<const float> samples,
                               const QuantizeOptions& options = {}) {
  OFFRAMP_REQUIRE(model.has_plan() && model.exit_count() > 0, "the network is no classifier with one float32 input");
  detail::check_samples(samples, model.sample_size());
  Graph g = simplified(model.graph(), options.model);
  detail::name_nodes(g);
  const ValueId answer = detail::answer_of(g, model);
  const auto expected = detail::answers_of(g, answer, options.model, samples, options.batch);
  detail::Quantizer q(std::move(g), answer, detail::QuantizedPart::backbone, samples, options);
  OFFRAMP_REQUIRE(!q.products().empty(), "the network has no convolution and no product by constants to quantize");
  if (options.equalize) q.equalize();
  q.observe();
  QuantizeResult r;
  r.samples = static_cast<Index>(expected.size());
  const auto judge = [&](const Graph& candidate) {
    const auto answers = detail::answers_of(candidate, answer, options.model, samples, options.batch);
    Index same = 0;
    for (std::size_t i = 0; i < answers.size(); ++i) same += answers[i] == expected[i];
    return static_cast<double>(same) / static_cast<double>(answers.size());
  };
  std::set<std::string> in_float(options.keep.begin(), options.keep.end());
  r.graph = q.write(in_float);
  r.agreement = judge(r.graph);
  std::map<std::string, double> errors;
  if (r.agreement < 1 - options.max_disagreement) {
    // How much each layer alone does to the answers, on a part of the samples.
    const Index some = std::min<Index>(64, r.samples);
    const auto part = samples.first(static_cast<std::size_t>(some * model.sample_size()));
    const auto scores = [&](const Graph& candidate) {
      std::vector<float> all;
      detail::watch_values(
          candidate, options.model, {answer}, part, options.batch,
          [&](std::size_t, const TensorView& x) { all.insert(all.end(), x.f32(), x.f32() + x.count()); });
      return all;
    };
    const auto plain = scores(q.graph());
    double power = 0;
    for (const float x : plain) power += static_cast<double>(x) * static_cast<double>(x);
    for (const std::string& name : q.products()) {
      if (in_float.contains(name)) continue;
      std::set<std::string> others(q.products().begin(), q.products().end());
      others.erase(name);
      const auto changed = scores(q.write(others));
      double error = 0;
      for (std::size_t i = 0; i < plain.size(); ++i) {
        const double d = static_cast<double>(plain[i] - changed[i]);
        error += d * d;
      }
      errors[name] = power > 0 ? error / power : 0;
    }
    std::vector<std::string> worst;
    for (const auto& [name, error] : errors) worst.push_back(name);
    std::stable_sort(worst.begin(), worst.end(),
                     [&](const std::string& a, const std::string& b) { return errors[a] > errors[b]; });
    // A few more each time; past half of the layers there is little left to gain.
    std::size_t next = 0;
    while (r.agreement < 1 - options.max_disagreement && next < (worst.size() + 1) / 2) {
      const std::size_t step = std::max<std::size_t>(1, worst.size() / 16);
      for (std::size_t i = 0; i < step && next < worst.size(); ++i) in_float.insert(worst[next++]);
      Graph candidate = q.write(in_float);
      const double agreement = judge(candidate);
      r.graph = std::move(candidate);
      r.agreement = agreement;
    }
  }
  for (const Node& n : q.graph().nodes) {
    if (std::find(q.products().begin(), q.products().end(), n.name) == q.products().end()) continue;
    r.layers.push_back({n.name, n.op, in_float.contains(n.name), errors.contains(n.name) ? errors[n.name] : 0});
  }
  r.graph.metadata["offramp.quantized"] = "int8";
  return r;
}

}  // namespace offramp

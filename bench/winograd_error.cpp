// How far Winograd's tiles are from the truth: winograd_error MODEL.onnx [SAMPLES [DATA]]
//
// Runs random samples through a plain evaluation in float64 and through the engine with every largest tile, 0 being no
// Winograd at all, and prints the largest difference of a logit over the largest logit. The plain evaluation knows
// what a ResNet for images is made of, in a graph whose batch norms are folded. With DATA as the tool reads them also
// how many answers differ from those without Winograd, in batches of 1 and of 32, which go different ways.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "data.hpp"
#include "offramp/graph/simplify.hpp"
#include "offramp/onnx/onnx.hpp"

namespace {

using namespace offramp;

// Of one sample.
struct Plane {
  Index channels = 0, h = 1, w = 1;
  std::vector<double> x;
  Plane(Index c, Index height, Index width, double value = 0)
      : channels(c), h(height), w(width), x(static_cast<std::size_t>(c * height * width), value) {}
  double& at(Index c, Index i, Index j) { return x[static_cast<std::size_t>((c * h + i) * w + j)]; }
  double at(Index c, Index i, Index j) const { return x[static_cast<std::size_t>((c * h + i) * w + j)]; }
};

// Where a window begins and how far it goes on: sizes, strides and paddings of both axes.
struct Steps {
  std::vector<Index> kernel, strides, pads;
  Steps(const Node& n, std::vector<Index> size)
      : kernel(std::move(size)), strides(n.integers("strides", {1, 1})), pads(n.integers("pads", {0, 0, 0, 0})) {
    OFFRAMP_REQUIRE(kernel.size() == 2 && n.integers("dilations", {1, 1}) == std::vector<Index>({1, 1}) &&
                        n.integer("ceil_mode", 0) == 0 && n.find("auto_pad") == nullptr,
                    "'" + n.name + "': the plain evaluation has 2-D windows without dilation only");
  }
  Index out(Index in, std::size_t axis) const {
    return (in + pads[axis] + pads[axis + 2] - kernel[axis]) / strides[axis] + 1;
  }
  // Calls f(y, x, i, j) for pixel (y, x) of the input under tap (i, j) of output pixel (row, column).
  template <class F>
  void each(const Plane& in, Index row, Index column, F&& f) const {
    for (Index i = 0; i < kernel[0]; ++i) {
      for (Index j = 0; j < kernel[1]; ++j) {
        const Index y = row * strides[0] - pads[0] + i, x = column * strides[1] - pads[1] + j;
        if (y >= 0 && y < in.h && x >= 0 && x < in.w) f(y, x, i, j);
      }
    }
  }
};

Plane convolve(const Node& n, const Plane& in, const Tensor& weights, const float* bias) {
  const Shape& s = weights.shape();
  const Steps steps(n, {s[2], s[3]});
  const Index groups = n.integer("group", 1), each = s[1], of_group = s[0] / groups;
  Plane out(s[0], steps.out(in.h, 0), steps.out(in.w, 1));
  const float* w = weights.view().f32();
  for (Index o = 0; o < out.channels; ++o) {
    for (Index y = 0; y < out.h; ++y) {
      for (Index x = 0; x < out.w; ++x) {
        double sum = bias ? static_cast<double>(bias[o]) : 0;
        for (Index c = 0; c < each; ++c) {
          const float* own = w + (o * each + c) * s[2] * s[3];
          steps.each(in, y, x, [&](Index yy, Index xx, Index i, Index j) {
            sum += in.at(o / of_group * each + c, yy, xx) * static_cast<double>(own[i * s[3] + j]);
          });
        }
        out.at(o, y, x) = sum;
      }
    }
  }
  return out;
}

Plane pool(const Node& n, const Plane& in) {
  const Steps steps(n, n.integers("kernel_shape"));
  Plane out(in.channels, steps.out(in.h, 0), steps.out(in.w, 1), -std::numeric_limits<double>::infinity());
  for (Index c = 0; c < out.channels; ++c) {
    for (Index y = 0; y < out.h; ++y) {
      for (Index x = 0; x < out.w; ++x)
        steps.each(in, y, x, [&](Index yy, Index xx, Index, Index) {
          out.at(c, y, x) = std::max(out.at(c, y, x), in.at(c, yy, xx));
        });
    }
  }
  return out;
}

Plane apply(const Graph& g, const Node& n, const std::map<ValueId, Plane>& known) {
  const Plane& in = known.at(n.inputs[0]);
  const auto constant = [&](std::size_t i) -> const Tensor& {
    OFFRAMP_REQUIRE(g.is_constant(n.input(i)), "'" + n.name + "': the plain evaluation wants constant weights");
    return g[n.input(i)].constant;
  };
  const float* bias = n.input(2) == no_value ? nullptr : constant(2).view().f32();
  if (n.op == "Conv") return convolve(n, in, constant(1), bias);
  if (n.op == "MaxPool") return pool(n, in);
  if (n.op == "GlobalAveragePool") {
    Plane out(in.channels, 1, 1);
    for (std::size_t i = 0; i < in.x.size(); ++i)
      out.x[i / static_cast<std::size_t>(in.h * in.w)] += in.x[i] / static_cast<double>(in.h * in.w);
    return out;
  }
  Plane out = in;
  if (n.op == "Flatten") return out;
  if (n.op == "Relu") {
    for (double& x : out.x) x = std::max(0.0, x);
    return out;
  }
  if (n.op == "Add") {
    const Plane& other = known.at(n.inputs[1]);
    for (std::size_t i = 0; i < out.x.size(); ++i) out.x[i] += other.x[i];
    return out;
  }
  OFFRAMP_REQUIRE(n.op == "Gemm" && n.integer("transB", 0) != 0,
                  "'" + n.name + "': the plain evaluation has no " + n.op);
  const Tensor& w = constant(1);
  out = Plane(w.shape()[0], 1, 1);
  for (std::size_t o = 0; o < out.x.size(); ++o) {
    out.x[o] = bias ? static_cast<double>(bias[o]) : 0;
    for (std::size_t i = 0; i < in.x.size(); ++i)
      out.x[o] += in.x[i] * static_cast<double>(w.view().f32()[o * in.x.size() + i]);
  }
  return out;
}

// The answers to all samples with tiles up to that size, `batch` at once.
std::vector<Index> answers(const char* path, Index tile, Index batch, const tool::Data& data) {
  ModelOptions o;
  o.winograd_tile = tile, o.batch = batch;
  Session session(load_onnx(path, o), Never{}, batch);
  std::vector<Index> all;
  for (Index i = 0; i < data.count(); i += batch) {
    const Index n = std::min(batch, data.count() - i);
    const std::span<const float> samples(data.samples);
    for (const Prediction& p : session.predict(samples.subspan(static_cast<std::size_t>(i * data.sample_size),
                                                               static_cast<std::size_t>(n * data.sample_size))))
      all.push_back(p.label);
  }
  return all;
}

}  // namespace

int main(int argc, char** argv) try {
  OFFRAMP_REQUIRE(argc >= 2, "winograd_error MODEL.onnx [SAMPLES [DATA]]");
  std::map<Index, Model> models;
  for (const Index tile : {Index{0}, Index{2}, Index{4}, Index{6}}) {
    ModelOptions o;
    o.winograd_tile = tile;
    models.emplace(tile, load_onnx(argv[1], o));
  }
  const Graph g = simplified(models.at(0).graph(), {});
  const PortInfo port = models.at(0).inputs()[0];
  OFFRAMP_REQUIRE(port.sizes.size() == 4, "the network takes no images");
  std::mt19937 engine(1);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::map<Index, double> worst;
  const int samples = argc > 2 ? std::atoi(argv[2]) : 1;
  for (int i = 0; i < samples; ++i) {
    Plane in(port.sizes[1], port.sizes[2], port.sizes[3]);
    std::vector<float> image(in.x.size());
    for (std::size_t k = 0; k < image.size(); ++k) in.x[k] = static_cast<double>(image[k] = uniform(engine));
    std::map<ValueId, Plane> known{{g.inputs[0], in}};
    for (const Node& n : g.nodes) known.insert_or_assign(n.outputs[0], apply(g, n, known));
    const std::vector<double>& truth = known.at(g.outputs[0]).x;
    double largest = 0;
    for (const double x : truth) largest = std::max(largest, std::abs(x));
    for (const auto& [tile, model] : models) {
      Model::State state = model.make_state(1);
      model.load(state, image.data(), 1);
      OFFRAMP_REQUIRE(model.run_full(state), "an index in the data is out of range");
      const float* logits = model.logits(state, model.exit_count() - 1);
      for (std::size_t k = 0; k < truth.size(); ++k)
        worst[tile] = std::max(worst[tile], std::abs(static_cast<double>(logits[k]) - truth[k]) / largest);
    }
  }
  for (const auto& [tile, error] : worst)
    std::printf("largest tile %ld: relative error against float64 %.2e\n", static_cast<long>(tile), error);
  if (argc > 3) {
    const tool::Data data = tool::read_data(argv[3]);
    OFFRAMP_REQUIRE(data.sample_size == models.at(0).sample_size(), "the data do not fit the network");
    for (const Index batch : {Index{1}, Index{32}}) {
      const std::vector<Index> plain = answers(argv[1], 0, batch, data);
      for (const Index tile : {Index{2}, Index{4}, Index{6}}) {
        const std::vector<Index> other = answers(argv[1], tile, batch, data);
        Index differ = 0;
        for (std::size_t i = 0; i < plain.size(); ++i) differ += plain[i] != other[i];
        std::printf("largest tile %ld, batch %ld: %ld of %ld answers differ\n", static_cast<long>(tile),
                    static_cast<long>(batch), static_cast<long>(differ), static_cast<long>(plain.size()));
      }
    }
  }
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}

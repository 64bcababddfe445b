/// @file observe.hpp
/// What compression asks of a network and its samples: the values inside, the answers, names for its nodes.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "offramp/graph/attach.hpp"
#include "offramp/graph/simplify.hpp"

namespace offramp::detail {

inline bool has_constant_weights(const Graph& g, const Node& n) {
  return n.input(1) != no_value && g.is_constant(n.input(1)) && g[n.input(1)].constant.type() == DType::f32;
}
/// Runs `g` over the samples and shows `values` to `look(which, view)`, batch by batch.
template <class Look>
void watch_values(const Graph& g, const ModelOptions& options, const std::vector<ValueId>& values,
                  std::span<const float> samples, Index batch, Look&& look) {
  if (values.empty()) return;
  Graph watched = with_outputs(g, values);
  for (const char* key : {"offramp.exits", "offramp.policy"}) watched.metadata.erase(key);
  const Model m(std::move(watched), options);
  const Index size = m.sample_size() > 0 ? m.sample_size() : 1;
  const Index count = static_cast<Index>(samples.size()) / size;
  for (Index first = 0; first < count; first += batch) {
    const Index n = std::min(batch, count - first);
    Tensor in(DType::f32, input_views(m.graph(), n, options.shape, options.limits)[0].shape);
    std::copy_n(samples.data() + first * size, n * size, static_cast<float*>(in.mutable_data()));
    const std::vector<Tensor> inputs{in};
    const auto out = m.run(inputs);
    for (std::size_t i = 0; i < values.size(); ++i) look(i, out[i].view());
  }
}

/// A value of its own, for after the run that shows it.
inline Tensor copied(const TensorView& x) {
  Tensor t(x.type, x.shape);
  std::copy_n(x.f32(), x.count(), static_cast<float*>(t.mutable_data()));
  return t;
}

/// The axis of channels of a value that a product reads or computes.
inline int channel_axis(const TensorView& x) noexcept {
  return x.shape.rank() >= 3 ? 1 : x.shape.rank() - 1;
}

inline std::vector<Index> answers_of(const Graph& g, ValueId answer, const ModelOptions& options,
                                     std::span<const float> samples, Index batch) {
  std::vector<Index> answers;
  watch_values(g, options, {answer}, samples, batch, [&](std::size_t, const TensorView& x) {
    const Index n = x.shape[0], each = x.count() / n;
    for (Index i = 0; i < n; ++i)
      answers.push_back(std::max_element(x.f32() + i * each, x.f32() + (i + 1) * each) - (x.f32() + i * each));
  });
  return answers;
}

/// The output of a model's graph, simplified or not, that its last exit is.
inline ValueId answer_of(const Graph& g, const Model& model) {
  return *std::find_if(g.outputs.begin(), g.outputs.end(),
                       [&](ValueId v) { return g[v].name == model.exits().back().name; });
}

/// Gives every node a name of its own, so that layers can be spoken of.
inline void name_nodes(Graph& g) {
  std::set<std::string> taken;
  for (std::size_t i = 0; i < g.nodes.size(); ++i) {
    Node& n = g.nodes[i];
    if (n.name.empty()) n.name = n.op + "_" + std::to_string(i);
    while (!taken.insert(n.name).second) n.name += "_";
  }
}

/// Milliseconds of one sample of zeros: the least of some runs, since nothing but disturbance is added to it.
inline double milliseconds_of(const Model& m) {
  using clock = std::chrono::steady_clock;
  auto state = m.make_state(1);
  const std::vector<float> sample(static_cast<std::size_t>(m.sample_size()), 0.0f);
  double least = std::numeric_limits<double>::infinity(), all = 0;
  for (int run = 0; run < 30 && (run < 5 || all < 100); ++run) {
    m.load(state, sample.data(), 1);
    const auto start = clock::now();
    m.run_full(state);
    const double ms = std::chrono::duration<double, std::milli>(clock::now() - start).count();
    least = std::min(least, ms);
    all += ms;
  }
  return least;
}

/// Raises an Error where samples are not whole, or hold numbers that are not finite.
inline void check_samples(std::span<const float> samples, Index size) {
  OFFRAMP_REQUIRE(size > 0 && !samples.empty() && static_cast<Index>(samples.size()) % size == 0,
                  "the data do not hold whole samples of " + std::to_string(size) + " numbers");
  for (const float x : samples) OFFRAMP_REQUIRE(std::isfinite(x), "the data hold numbers that are not finite");
}

}  // namespace offramp::detail

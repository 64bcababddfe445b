// Networks, what leaving at each of their exits takes, and their layers, by Google Benchmark:
//   networks [--benchmark_...] MODEL.onnx...
// FLOPS counts nominal ones; a layer is timed inside of whole runs, so that it finds its weights where the network
// does.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "offramp/graph/repeated_run.hpp"
#include "offramp/onnx/onnx.hpp"
#include "offramp/policy/constant.hpp"
#include "offramp/session/session.hpp"

namespace {

using namespace offramp;

void count(benchmark::State& state, std::int64_t flops) {
  state.counters["FLOPS"] =
      benchmark::Counter(static_cast<double>(flops), benchmark::Counter::kIsIterationInvariantRate);
}

void network(benchmark::State& state, const Model& model, Index batch) {
  RepeatedRun run(model, batch);
  for (auto _ : state) run.run();
  count(state, model.exits().back().upto.flops * batch);
}

void leave_at(benchmark::State& state, const Model& model, Index exit) {
  Session session(model, Always{exit});
  const std::vector<float> x(static_cast<std::size_t>(model.sample_size()), 0.5f);
  for (auto _ : state) benchmark::DoNotOptimize(session.predict(x));
  count(state, model.exits()[static_cast<std::size_t>(exit)].upto.flops);
}

void layer(benchmark::State& state, const Model& model, std::size_t index) {
  RepeatedRun run(model, 1);
  for (auto _ : state) state.SetIterationTime(run.layer_ms()[index] / 1e3);
  const LayerInfo& l = model.layers()[index];
  count(state, l.cost.flops);
  state.SetLabel(l.op + (l.algorithm.empty() ? "" : ", " + l.algorithm));
}

void add(const std::string& file) {
  const std::string name = std::filesystem::path(file).stem().string();
  const auto with = [&](const std::string& what, auto&& run) {
    return benchmark::RegisterBenchmark((what + "/" + name).c_str(), run)->Unit(benchmark::kMicrosecond);
  };
  const Model model = load_onnx(file);
  with("network", [model](benchmark::State& s) { network(s, model, 1); });
  if (!model.runs_single_samples()) {
    ModelOptions options;
    options.batch = 8;
    with("network_batch_8", [wide = load_onnx(file, options)](benchmark::State& s) { network(s, wide, 8); });
  }
  for (Index exit = 0; exit + 1 < model.exit_count(); ++exit) {
    with("exit/" + model.exits()[static_cast<std::size_t>(exit)].name,
         [model, exit](benchmark::State& s) { leave_at(s, model, exit); });
  }
  for (std::size_t i = 0; i < model.layers().size(); ++i) {
    if (model.layers()[i].algorithm == "view") continue;
    with("layer/" + model.layers()[i].name, [model, i](benchmark::State& s) { layer(s, model, i); })
        ->UseManualTime()
        ->Iterations(500);
  }
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    try {
      add(argv[i]);
    } catch (const Error& e) {
      std::fprintf(stderr, "%s\n", e.what());
      return 1;
    }
  }
  benchmark::RunSpecifiedBenchmarks();
}

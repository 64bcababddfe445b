// offramp: inspects, runs, evaluates and calibrates early-exit networks in ONNX files.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <iostream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "bench.hpp"
#include "cache.hpp"
#include "calibration.hpp"
#include "compression.hpp"
#include "data.hpp"
#include "evaluation.hpp"
#include "npy.hpp"
#include "offramp/graph/tune.hpp"
#include "offramp/offramp.hpp"
#include "optimize.hpp"
#include "output.hpp"
#include "report.hpp"

namespace {

using namespace tool;
using offramp::Model;
using offramp::ModelOptions;

struct Common {
  std::string model;
  bool as_json = false;
  std::vector<Index> shape;
  std::string isa;
  Index winograd = 6;
  bool bf16 = false, tune = false;

  ModelOptions options() const {
    ModelOptions o;
    o.shape = shape;
    o.winograd_tile = winograd;
    o.bf16 = bf16;
    if (!isa.empty()) {
      bool found = false;
      for (const offramp::Isa i : offramp::available_isas()) {
        if (offramp::name_of(i) == isa) o.isa = i, found = true;
      }
      OFFRAMP_REQUIRE(found, "instruction set '" + isa + "' is not available here");
    }
    return o;
  }
  Model load() const { return offramp::load_onnx(model, options()); }
  /// To run it and no more.
  Model load_to_run(Index batch = 1, int threads = 1) const {
    ModelOptions o = options();
    o.batch = batch;
    if (threads > 1) o.pool = std::make_shared<offramp::ThreadPool>(threads);
    if (tune) o.conv_methods = offramp::tune_convolutions(load().graph(), o);
    o.keep_graph = false;
    return offramp::load_onnx(model, o);
  }
};

void require_exits(const Model& m) {
  OFFRAMP_REQUIRE(m.has_plan(), m.why_not());
  m.make_state(1);  // raises the reason where the outputs are no exits
}

std::string sizes_text(const std::vector<Index>& sizes) {
  std::string s = "[";
  for (std::size_t i = 0; i < sizes.size(); ++i)
    s += (i ? "," : "") + (sizes[i] == offramp::dynamic ? std::string("N") : std::to_string(sizes[i]));
  return s + "]";
}

int inspect(const Common& c) {
  const Model m = c.load();
  if (!m.has_plan()) offramp::raise(offramp::Error(m.why_not(), "", "", c.model));
  const double total = static_cast<double>(m.exits().empty() ? m.total_cost().macs : [&] {
    std::int64_t n = 0;
    for (const auto& e : m.exits()) n += e.stage.macs;
    return n;
  }());
  if (c.as_json) {
    json j = cost_json(m.total_cost());
    j["parameters"] = m.parameters();
    j["memory_bytes"] = m.memory_bytes(1);
    j["isa"] = offramp::name_of(m.isa());
    j["single_samples"] = m.runs_single_samples();
    j["inputs"] = json::array();
    for (const auto& p : m.inputs())
      j["inputs"].push_back({{"name", p.name}, {"type", offramp::name_of(p.type)}, {"shape", p.sizes}});
    j["exits"] = json::array();
    for (const auto& e : m.exits()) {
      j["exits"].push_back({{"name", e.name},
                            {"macs", e.upto.macs},
                            {"flops", e.upto.flops},
                            {"fraction", total > 0 ? static_cast<double>(e.upto.macs) / total : 0},
                            {"head", cost_json(e.head)},
                            {"stage", cost_json(e.stage)}});
    }
    j["layers"] = json::array();
    for (const auto& l : m.layers()) {
      json x = cost_json(l.cost);
      x["name"] = l.name, x["op"] = l.op, x["algorithm"] = l.algorithm, x["parameters"] = l.parameters,
      x["exit"] = l.exit, x["head"] = l.is_head;
      x["output"] = std::vector<Index>(l.output.begin(), l.output.end());
      j["layers"].push_back(std::move(x));
    }
    j["metadata"] = m.metadata();
    std::cout << j.dump(2) << '\n';
    return 0;
  }
  std::printf("%-4s %-26s %-30s %-16s %10s %11s %11s  %s\n", "exit", "operator", "name", "output", "weights", "MACs",
              "FLOPs", "algorithm");
  for (const auto& l : m.layers()) {
    std::printf("%-4s %-26s %-30s %-16s %10s %11s %11s  %s\n",
                (std::to_string(l.exit) + (l.is_head ? "h" : "")).c_str(), l.op.c_str(), l.name.substr(0, 30).c_str(),
                l.output.text().c_str(), engineering(static_cast<double>(l.parameters)).c_str(),
                engineering(static_cast<double>(l.cost.macs)).c_str(),
                engineering(static_cast<double>(l.cost.flops)).c_str(), l.algorithm.c_str());
  }
  for (const auto& p : m.inputs())
    std::printf("\ninput %s %s %s\n", p.name.c_str(), std::string(offramp::name_of(p.type)).c_str(),
                sizes_text(p.sizes).c_str());
  std::printf(
      "parameters %s, MACs %s, FLOPs %s (executed %s), all heads included\nworking memory for one sample %s bytes, "
      "kernels for %s\n",
      engineering(static_cast<double>(m.parameters())).c_str(),
      engineering(static_cast<double>(m.total_cost().macs)).c_str(),
      engineering(static_cast<double>(m.total_cost().flops)).c_str(),
      engineering(static_cast<double>(m.total_cost().executed)).c_str(),
      engineering(static_cast<double>(m.memory_bytes(1))).c_str(), std::string(offramp::name_of(m.isa())).c_str());
  if (m.runs_single_samples()) std::printf("samples are run one by one: the graph fixes or mixes the batch axis\n");
  if (!m.exits().empty()) std::printf("\n%-20s %12s %12s %10s %12s\n", "exit", "MACs", "FLOPs", "of full", "head MACs");
  for (const auto& e : m.exits()) {
    std::printf("%-20s %12s %12s %10s %12s\n", e.name.c_str(), engineering(static_cast<double>(e.upto.macs)).c_str(),
                engineering(static_cast<double>(e.upto.flops)).c_str(),
                percent(total > 0 ? static_cast<double>(e.upto.macs) / total : 0, 1).c_str(),
                engineering(static_cast<double>(e.head.macs)).c_str());
  }
  for (const auto& [key, value] : m.metadata()) std::printf("metadata %s = %s\n", key.c_str(), value.c_str());
  return 0;
}

int run(const Common& c, const std::vector<std::string>& inputs, const std::string& folder) {
  std::map<std::string, offramp::Tensor> given;
  std::vector<offramp::Tensor> unnamed;
  for (const std::string& s : inputs) {
    const auto equals = s.find('=');
    if (equals == std::string::npos || std::filesystem::exists(s))
      unnamed.push_back(read_npy(s));
    else
      given[s.substr(0, equals)] = read_npy(s.substr(equals + 1));
  }
  Common with_shape = c;
  const bool one = unnamed.size() == 1 && given.empty();
  if (one && with_shape.shape.empty()) with_shape.shape.assign(unnamed[0].shape().begin(), unnamed[0].shape().end());
  const Model m = with_shape.load_to_run();
  std::vector<offramp::Tensor> in;
  for (const auto& p : m.inputs()) {
    if (const auto i = given.find(p.name); i != given.end())
      in.push_back(i->second);
    else if (one && m.inputs().size() == 1)
      in.push_back(unnamed[0]);
    else
      offramp::raise("input '" + p.name + "' is not given: use --input " + p.name + "=FILE.npy");
  }
  OFFRAMP_REQUIRE(given.size() + unnamed.size() == m.inputs().size(),
                  "the network takes " + std::to_string(m.inputs().size()) + " inputs, " +
                      std::to_string(given.size() + unnamed.size()) + " were given");
  const auto out = m.run(in);
  std::filesystem::create_directories(folder);
  json j = json::array();
  for (std::size_t i = 0; i < out.size(); ++i) {
    std::string file = m.outputs()[i].name;
    for (char& ch : file) ch = ch == '/' || ch == '\\' || ch == ':' ? '_' : ch;
    const std::string path = folder + "/" + file + ".npy";
    write_npy(path, out[i]);
    if (c.as_json)
      j.push_back({{"name", m.outputs()[i].name},
                   {"file", path},
                   {"shape", std::vector<Index>(out[i].shape().begin(), out[i].shape().end())}});
    else
      std::printf("%s %s %s\n", path.c_str(), std::string(offramp::name_of(out[i].type())).c_str(),
                  out[i].shape().text().c_str());
  }
  if (c.as_json) std::cout << json{{"outputs", j}}.dump(2) << '\n';
  return 0;
}

std::string carried_policy(const Model& m) {
  const auto i = m.metadata().find("offramp.policy");
  return i == m.metadata().end() ? "never" : i->second;
}

int eval(const Common& c, const std::string& spec, std::string policy, int threads, Index batch,
         const std::string& report_path) {
  const Model m = c.load_to_run(batch);
  require_exits(m);
  if (policy.empty()) policy = carried_policy(m);
  const auto p = offramp::parse_policy(policy);
  const Data data = read_data(spec);
  const Evaluation e = evaluate(m, p, data, batch, threads);
  if (c.as_json) {
    json j = to_json(e);
    j["policy"] = policy;
    j["batch"] = batch;
    j["threads"] = threads;
    std::cout << j.dump(2) << '\n';
  } else {
    std::printf("%s on %s, policy %s, batch %ld, %d thread%s\n\n", c.model.c_str(), spec.c_str(), policy.c_str(),
                static_cast<long>(batch), threads, threads == 1 ? "" : "s");
    print(e, m);
  }
  if (!report_path.empty()) {
    Progress progress("all exits", data.count());
    const auto scores = offramp::record_scores(m, data.samples, data.labels, [&](Index done) { progress.at(done); });
    offramp::onnx::write_file(report_path,
                              report(m, std::filesystem::path(c.model).filename().string(), policy, data, e, scores));
    if (!c.as_json) std::printf("\nreport: %s\n", report_path.c_str());
  }
  return 0;
}

/// The files of a data set that is named at least by `--data`.
struct CacheCommand {
  std::string data, calibration, test, output, report;
  std::optional<double> disagreement, drop, budget;
  double confidence = 0.9;
  std::string objective = "modelled";
  bool labels = false, per_class = false, plain = false, read_earlier = false, float_heads = false;
  std::uint64_t seed = 0, split_seed = 0;
  int threads = 2, epochs = 0;
};

int cache(const Common& c, const CacheCommand& o) {
  OFFRAMP_REQUIRE(o.report.empty() || !o.test.empty(), "a report needs test data: use --test");
  const Model m = c.load();
  require_exits(m);
  const Data data = read_data(o.data);
  check_data(m, data);
  Data calibration, test;
  if (!o.calibration.empty()) {
    calibration = read_data(o.calibration);
    check_data(m, calibration);
  }
  if (!o.test.empty()) {
    test = read_data(o.test);
    check_data(m, test);
  }
  offramp::CacheOptions options;
  options.model = c.options();
  options.seed = o.seed;
  options.threads = o.threads;
  options.split_seed = o.split_seed;
  options.objective = objective_called(o.objective);
  options.certificate.delta = 1 - o.confidence;
  options.certificate.per_class = o.per_class;
  options.budget = o.budget;
  options.read_earlier = o.read_earlier;
  options.augment = !o.plain;
  options.quantize_heads = !o.float_heads;
  if (o.epochs > 0) options.explore.epochs = options.refine.epochs = o.epochs;
  if (o.disagreement) options.certificate.epsilon = *o.disagreement / 100;
  if (o.drop) {
    options.certificate.epsilon = *o.drop / 100;
    options.certificate.risk = offramp::Risk::accuracy_drop;
  }
  offramp::CacheData d;
  d.samples = data.samples;
  d.labels_in_training = o.labels;
  d.calibration = calibration.samples;
  if (o.drop || o.labels) {
    d.labels = data.labels;
    d.calibration_labels = calibration.labels;
  }
  const offramp::CacheResult r = offramp::cache_layers(m, d, options, cache_progress());
  if (!o.output.empty()) offramp::onnx::write_file(o.output, offramp::onnx::write(r.graph));
  json j = to_json(r);
  if (!c.as_json) print(r);
  if (!o.test.empty()) {
    const Model cached(r.graph, c.options());
    const auto policy = offramp::policy_of(cached);
    const Evaluation e = evaluate(cached, policy, test, 1, 1);
    if (!o.report.empty()) {
      const auto scores = offramp::record_scores(cached, test.samples, test.labels, [](Index) {});
      offramp::onnx::write_file(o.report, report(cached, std::filesystem::path(c.model).filename().string(),
                                                 carried_policy(cached), test, e, scores, cache_section(r)));
    }
    if (c.as_json) {
      j["validation"] = to_json(e);
    } else {
      std::printf("\non %s\n\n", o.test.c_str());
      print(e, cached);
    }
  }
  if (c.as_json) std::cout << j.dump(2) << '\n';
  if (!c.as_json && !o.output.empty()) std::printf("\nwritten: %s\n", o.output.c_str());
  return 0;
}

int bench(const Common& c, Index batch, int threads, double seconds, bool per_layer) {
  const Model m = c.load_to_run(batch, threads);
  const BenchResult r = measure(m, batch, threads, seconds, per_layer);
  if (c.as_json)
    std::cout << to_json(r, m).dump(2) << '\n';
  else
    print(r, m);
  return 0;
}

int cascade_command(const Common& c, const std::vector<std::string>& more, const CalibrateCommand& o) {
  std::vector<std::string> paths{c.model};
  paths.insert(paths.end(), more.begin(), more.end());
  const auto versions = load_versions(paths, c.options());
  return calibrate(Model(offramp::cascade(versions), c.options()), c.options(), o, c.as_json, true);
}

int save(const Common& c, const std::string& output, bool nested, bool without_exits) {
  Model m = c.load();
  if (without_exits) {
    require_exits(m);
    offramp::Graph g = m.graph();
    for (const char* key : {"offramp.exits", "offramp.policy", "offramp.certificate"}) g.metadata.erase(key);
    const auto answer = std::find_if(g.outputs.begin(), g.outputs.end(),
                                     [&](offramp::ValueId v) { return g[v].name == m.exits().back().name; });
    const std::vector<offramp::ValueId> last{*answer};
    m = Model(with_outputs(std::move(g), last), c.options());
  }
  offramp::save_onnx(m, output, nested ? offramp::ExitForm::nested_if : offramp::ExitForm::outputs);
  if (c.as_json)
    std::cout << json{{"output", output}}.dump() << '\n';
  else
    std::printf("%s\n", output.c_str());
  return 0;
}

/// `--objective` of what chooses exits.
void add_exit_objective(CLI::App* app, std::string& objective) {
  app->add_option("--objective", objective,
                  "what is saved: nominal flops, time as it is modelled (the same each time), or measured latency")
      ->check(CLI::IsMember({"flops", "modelled", "latency"}))
      ->capture_default_str();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Early-exit networks in ONNX files: what they cost, what they answer, and when they may answer early."};
  app.require_subcommand(1);
  app.footer(
      "An exit is an output of the ONNX graph, in order of depth; the last is the network's own answer.\n"
      "Data: fashion-mnist:DIR[:train|test], cifar10:FILE.bin, npy:SAMPLES.npy,LABELS.npy; a range [a:b] may follow.\n"
      "Policies: max-probability:T, entropy:T, margin:T, agreement:T, patience:K, flops:F, deadline:S, always[:EXIT], "
      "never,\n"
      "          temperature(T,..;P), ensemble(P), last-ensemble(P), route(EXIT;T,..;P), and(P;Q), or(P;Q), not(P); "
      "T is one\n          number or one for each early exit.");
  Common c;
  const auto command = [&](const char* name, const char* what) {
    CLI::App* sub = app.add_subcommand(name, what);
    sub->add_option("model", c.model, "the network, an ONNX file")->required();
    sub->add_flag("--json", c.as_json, "print JSON for machines");
    sub->add_option("--shape", c.shape, "sizes of the input where the file leaves them open, N,C,H,W")->delimiter(',');
    sub->add_flag("--bf16", c.bf16, "products in bfloat16, where the CPU has them");
    sub->add_option(
        "--isa", c.isa,
        "instruction set: baseline, avx2, avx512, avx512_vnni, avx512_bf16 or amx (default: the best here)");
    return sub;
  };
  CLI::App* inspect_command =
      command("inspect", "Lists layers, shapes, parameters, MACs and FLOPs, and what each exit costs");

  CLI::App* run_command = command("run", "Computes every output for given inputs and writes them as .npy files");
  std::vector<std::string> inputs;
  std::string folder = ".";
  run_command->add_option("--input", inputs, "FILE.npy, or NAME=FILE.npy where the network has several inputs")
      ->required();
  run_command->add_option("--output-dir", folder, "where the outputs go")->capture_default_str();

  std::string spec, policy, report_path, output;
  int threads = 1;
  Index batch = 1;
  CLI::App* eval_command =
      command("eval", "Measures accuracy, agreement, FLOPs and latency of a policy against the full network");
  const char* const tune_text = "choose the methods of convolutions by timing them, not by a cost model";
  eval_command->add_flag("--tune", c.tune, tune_text);
  eval_command->add_option("--data", spec, "the data set")->required();
  eval_command->add_option("--policy", policy, "when to leave (default: what the file carries)");
  eval_command->add_option("--threads", threads, "sessions at work side by side")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  eval_command->add_option("--batch", batch, "samples in one call")->check(CLI::Range(1, 65536))->capture_default_str();
  eval_command->add_option("--report", report_path,
                           "also write an HTML page with the curve over all thresholds and example images");

  CLI::App* calibrate_command =
      command("calibrate", "Chooses the thresholds of all exits from data and writes them into the file");
  CalibrateCommand cal;
  CLI::App* cascade_app =
      command("cascade", "Joins networks into one that tries the cheap ones first, and calibrates it");
  std::vector<std::string> more;
  cascade_app->add_option("more", more, "further networks; the one with the most FLOPs is the reference")->required();
  for (CLI::App* app_of_both : {calibrate_command, cascade_app}) {
    app_of_both->add_option("--data", cal.data, "the data set, apart from the one that accuracy is reported on")
        ->required();
    auto* target = app_of_both->add_option_group("target", "exactly one of");
    target->add_option("--max-accuracy-drop", cal.drop, "percentage points that the accuracy may fall by; reads labels")
        ->check(CLI::Range(0.0, 100.0));
    target
        ->add_option("--max-disagreement", cal.disagreement,
                     "answers in a hundred that may differ from the full network's; reads no labels")
        ->check(CLI::Range(0.0, 100.0));
    target->add_option("--budget,--flops-budget", cal.budget, "mean FLOPs (or milliseconds) of a sample")
        ->check(CLI::PositiveNumber);
    target->require_option(1);
    app_of_both
        ->add_option("--confidence", cal.confidence,
                     "certify: choose by two fifths of the samples and prove by the others")
        ->check(CLI::Range(0.5, 0.99999));
    add_exit_objective(app_of_both, cal.objective);
    app_of_both->add_flag("--per-class", cal.per_class, "the risk is to hold within each class, too");
    app_of_both->add_option("--kind", cal.kinds,
                            "kinds of confidence to choose from: max-probability, max-probability-per-class, "
                            "ensemble, gate, ensemble-of-gates (default: all)");
    app_of_both->add_option("--seed", cal.seed, "of the split")->capture_default_str();
    app_of_both->add_option("--output", cal.output, "the network with its policy, an ONNX file");
  }
  calibrate_command->add_flag("--int8-heads", cal.int8_heads,
                              "do the larger products of exit heads in bytes, which costs less time");

  CLI::App* cache_command =
      command("cache", "Puts exits on a pretrained network: trains heads without labels, chooses, certifies and saves");
  CacheCommand k;
  cache_command->add_option("--data", k.data, "inputs to learn from; labels are not read unless asked for")->required();
  cache_command->add_option("--calibration", k.calibration,
                            "inputs to choose and certify by, where they are a set of their own");
  cache_command->add_option("--test", k.test, "inputs to measure the result on, in turn with the full network");
  cache_command->add_option("--output", k.output, "the cached network, an ONNX file");
  cache_command->add_option("--report", k.report, "an HTML page about the result on the test data");
  auto* risk = cache_command->add_option_group("risk", "at most one of (default: a disagreement of 1)");
  risk->add_option("--max-disagreement", k.disagreement, "answers in a hundred that may differ from the full network's")
      ->check(CLI::Range(0.001, 99.0));
  risk->add_option("--max-accuracy-drop", k.drop, "percentage points of accuracy that may be lost; reads labels")
      ->check(CLI::Range(0.001, 99.0));
  risk->add_option("--budget", k.budget, "instead: mean FLOPs (or milliseconds) of a sample")
      ->check(CLI::PositiveNumber);
  risk->require_option(0, 1);
  cache_command->add_option("--confidence", k.confidence, "of the certificate")
      ->check(CLI::Range(0.5, 0.99999))
      ->capture_default_str();
  add_exit_objective(cache_command, k.objective);
  cache_command->add_flag("--labels", k.labels, "mix labels into the training of heads");
  cache_command->add_flag("--per-class", k.per_class, "the risk is to hold within each class, too");
  cache_command->add_flag("--read-earlier", k.read_earlier, "heads also read the exit before");
  cache_command->add_flag("--float-heads", k.float_heads,
                          "do the products of exit heads in float, also where bytes cost less time");
  cache_command->add_flag("--no-augmentation", k.plain, "train on the images as they are");
  cache_command->add_option("--epochs", k.epochs, "passes over the data, in each of the two trainings")
      ->check(CLI::Range(1, 10000));
  cache_command->add_option("--seed", k.seed, "of training")->capture_default_str();
  cache_command->add_option("--split-seed", k.split_seed, "draws which samples train, choose and certify")
      ->capture_default_str();
  cache_command->add_option("--threads", k.threads, "threads at work")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();

  CompressCommand compress;
  CLI::App* quantize_app = command("quantize", "Quantizes a network to bytes by inputs without labels");
  CLI::App* prune_app = command("prune", "Takes channels and residual blocks out of a network and fits the rest");
  for (CLI::App* app_of_both : {quantize_app, prune_app}) {
    app_of_both->add_option("--data", compress.data, "inputs to learn from; labels are not read")->required();
    app_of_both->add_option("--test", compress.test, "data to compare both networks on (default: those of --data)");
    app_of_both->add_option("--output", compress.output, "the smaller network, an ONNX file");
    app_of_both->add_option("--samples", compress.samples, "inputs to learn from, from the front")
        ->check(CLI::Range(1, 10'000'000))
        ->capture_default_str();
  }
  quantize_app->add_option("--range", compress.range, "of activations: squared-error, percentile or extremes")
      ->check(CLI::IsMember({"squared-error", "percentile", "extremes"}))
      ->capture_default_str();
  quantize_app->add_option("--percentile", compress.percentile, "share of what was seen that a range holds")
      ->check(CLI::Range(0.5, 1.0))
      ->capture_default_str();
  quantize_app
      ->add_option("--max-disagreement", compress.max_disagreement,
                   "answers in a hundred that may change on the data; layers that suffer stay in float until it holds")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  quantize_app->add_option("--form", compress.form, "of the file: qdq or qoperator (ONNX Runtime's own operators)")
      ->check(CLI::IsMember({"qdq", "qoperator"}))
      ->capture_default_str();
  quantize_app->add_option("--keep", compress.keep, "names of nodes that stay in float");
  quantize_app->add_flag("--no-bias-correction", compress.no_bias_correction, "leave biases as they are");
  quantize_app->add_flag("--no-equalization", compress.no_equalization, "do not scale channels of depthwise networks");
  prune_app->add_option("--remove", compress.remove, "per cent of the FLOPs (or of the latency) to take out")
      ->check(CLI::Range(0.1, 99.0))
      ->capture_default_str();
  prune_app->add_option("--criterion", compress.criterion, "reconstruction, activation-energy or weight-norm")
      ->check(CLI::IsMember({"reconstruction", "activation-energy", "weight-norm"}))
      ->capture_default_str();
  prune_app->add_option("--objective", compress.objective, "flops or latency: what --remove counts")
      ->check(CLI::IsMember({"flops", "latency"}))
      ->capture_default_str();
  prune_app->add_flag("--no-refit", compress.no_refit, "leave the weights as they are");
  prune_app->add_flag("--no-blocks", compress.no_blocks, "leave residual blocks whole");
  prune_app
      ->add_option("--distil", compress.epochs,
                   "epochs over all of --data in which the weights that are left learn the whole network's answers")
      ->check(CLI::Range(0, 10'000))
      ->capture_default_str();
  prune_app->add_option("--threads", compress.threads, "threads at work")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  prune_app->add_option("--seed", compress.seed, "of everything random")->capture_default_str();
  prune_app->add_option("--granularity", compress.granularity, "channels that go together")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();

  OptimizeCommand optimize;
  CLI::App* optimize_app =
      command("optimize", "Makes quantized, pruned, early answering and cascaded forms, measures all, keeps the best");
  optimize_app->add_option("more", optimize.more, "other versions of the network; the dearest is the reference");
  optimize_app->add_option("--data", optimize.data, "inputs to learn from")->required();
  optimize_app->add_option("--calibration", optimize.calibration,
                           "data to choose and certify by (default: a half of --data)");
  optimize_app->add_option("--test", optimize.test, "data to report the result on");
  optimize_app->add_option("--output", optimize.output, "the best form, an ONNX file");
  optimize_app->add_option("--front", optimize.front, "a folder for every form on the front, with a manifest");
  optimize_app->add_option("--report", optimize.report, "an HTML page");
  auto* optimize_risk = optimize_app->add_option_group("risk", "one of");
  optimize_risk
      ->add_option("--max-disagreement", optimize.disagreement,
                   "answers in a hundred that may differ from the reference's")
      ->check(CLI::Range(0.001, 99.0));
  optimize_risk
      ->add_option("--max-accuracy-drop", optimize.drop, "percentage points of accuracy that may be lost; reads labels")
      ->check(CLI::Range(0.001, 99.0));
  optimize_risk->require_option(1);
  optimize_app->add_option("--confidence", optimize.confidence, "of the certificate")
      ->check(CLI::Range(0.5, 0.99999))
      ->capture_default_str();
  optimize_app->add_option("--objective", optimize.objective, "latency, flops or memory")
      ->check(CLI::IsMember({"latency", "flops", "memory"}))
      ->capture_default_str();
  optimize_app->add_option("--without", optimize.without, "forms to leave out: int8, prune, exits, cascade")
      ->check(CLI::IsMember({"int8", "prune", "exits", "cascade"}));
  optimize_app->add_option("--remove", optimize.remove, "per cent of FLOPs or latency that pruned forms lose")
      ->check(CLI::Range(0.1, 99.0));
  optimize_app
      ->add_option(
          "--distil", optimize.distil,
          "epochs over 10,000 inputs in which pruned forms learn the whole network's answers; over more as many fewer")
      ->check(CLI::Range(0, 10'000))
      ->capture_default_str();
  optimize_app->add_option("--seed", optimize.seed, "of everything random")->capture_default_str();
  optimize_app->add_option("--threads", optimize.threads, "threads that train exits")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();

  CLI::App* bench_command =
      command("bench", "Measures latency and GFLOP/s of the full network, against the peak of this machine");
  double seconds = 2;
  bool per_layer = false;
  bench_command->add_option("--batch", batch, "samples in one call")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  bench_command->add_option("--threads", threads, "threads that share each operation")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  bench_command->add_option("--seconds", seconds, "time to measure for")
      ->check(CLI::Range(0.01, 3600.0))
      ->capture_default_str();
  bench_command->add_flag("--per-layer", per_layer,
                          "also each layer alone, with its algorithm, and each exit's stage and head");
  bench_command->add_flag("--tune", c.tune, tune_text);
  bench_command->add_option("--winograd", c.winograd, "largest tile of Winograd convolutions: 6, 4, 2, or 0 for none")
      ->check(CLI::IsMember({0, 2, 4, 6}))
      ->capture_default_str();

  CLI::App* save_command =
      command("save", "Writes the network as ONNX again, its exits as outputs or as nested `If` nodes");
  bool nested = false;
  save_command->add_option("--output", output, "the ONNX file to write")->required();
  save_command->add_flag("--nested-if", nested, "nest the exits, so that any runtime skips what is behind them");

  bool without_exits = false;
  auto* plain = save_command->add_flag("--without-exits", without_exits, "leave the exits and their policy out");
  plain->excludes("--nested-if");

  for (int i = 1; i < argc; ++i) {
    if (*argv[i]) continue;
    std::fprintf(stderr, "offramp: argument %d is empty\n", i);  // CLI11 may look for its option for ever
    return 1;
  }
  CLI11_PARSE(app, argc, argv);
  try {
    if (*inspect_command) return inspect(c);
    if (*run_command) return run(c, inputs, folder);
    if (*eval_command) return eval(c, spec, policy, threads, batch, report_path);
    if (*calibrate_command) {
      const Model m = c.load();
      require_exits(m);
      return calibrate(m, c.options(), cal, c.as_json, false);
    }
    if (*cascade_app) return cascade_command(c, more, cal);
    if (*optimize_app) return optimize_command(c.model, optimize, c.options(), c.as_json);
    if (*quantize_app || *prune_app) {
      const Model m = c.load();
      require_exits(m);
      return *quantize_app ? quantize_command(m, compress, c.options(), c.as_json)
                           : prune_command(m, compress, c.options(), c.as_json);
    }
    if (*cache_command) return cache(c, k);
    if (*save_command) return save(c, output, nested, without_exits);
    if (*bench_command) return bench(c, batch, threads, seconds, per_layer);
  } catch (const std::exception& e) {
    std::string what = e.what();
    for (char& ch : what) ch = ch == '\n' ? ' ' : ch;
    std::fprintf(stderr, "offramp: %s\n", what.c_str());
    return 1;
  }
  return 0;
}

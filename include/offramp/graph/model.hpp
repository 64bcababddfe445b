/// @file model.hpp
/// A network at run time: prepared once, immutable, shared by any number of sessions and threads.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <new>
#include <numeric>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "offramp/flops/cost.hpp"
#include "offramp/graph/exits.hpp"
#include "offramp/graph/graph.hpp"
#include "offramp/graph/infer.hpp"
#include "offramp/graph/integer_passes.hpp"
#include "offramp/graph/passes.hpp"
#include "offramp/graph/samples.hpp"
#include "offramp/kernel/dispatch.hpp"

namespace offramp {

/// How a graph is prepared.
struct ModelOptions {
  Isa isa = best_isa();      ///< instruction set of the kernels
  std::vector<Index> shape;  ///< sizes of the input, where the file leaves axes other than the batch open
  Limits limits;
  Operators operators;               ///< built-in, and the user's own
  Index batch = 1;                   ///< samples of a usual call, for the choice of algorithms
  Index winograd_tile = 6;           ///< largest tile of Winograd convolutions: 6, 4 or 2; 0: none
  bool bf16 = false;                 ///< products in bfloat16 with sums in float32, where the CPU has them
  std::shared_ptr<ThreadPool> pool;  ///< does the parts of an operation; null: the calling thread alone
};

/// One exit of a network, in depth order. Costs are of one sample.
struct ExitInfo {
  std::string name;
  Cost stage;  ///< the part of the backbone between the exit before and this one
  Cost head;   ///< the exit head; zero for the last exit, whose head is the backbone's own
  Cost upto;   ///< all stages up to this exit, and its own head
};

/// One prepared layer, for people.
struct LayerInfo {
  std::string name, op, algorithm;
  Shape output;  ///< for one sample, channels second
  Index parameters = 0;
  Cost cost;       ///< of one sample
  Index exit = 0;  ///< its stage, or the exit whose head it belongs to
  bool is_head = false;
};

/// A named input or output; the batch axis has size `dynamic`.
struct PortInfo {
  std::string name;
  DType type = DType::none;
  std::vector<Index> sizes;
};

/// A network as a prepared graph. Cheap to copy: copies share everything.
class Model {
 public:
  class State;

  /// Prepares `graph`. Raises an Error that names the node where it cannot be understood.
  explicit Model(Graph graph, const ModelOptions& options = {}) : d_(build(std::move(graph), options)) {}

  /// The graph as it was loaded, for writing it again.
  const Graph& graph() const noexcept { return d_->source; }
  const std::map<std::string, std::string>& metadata() const noexcept { return d_->source.metadata; }
  Isa isa() const noexcept { return d_->options.isa; }

  std::span<const PortInfo> inputs() const noexcept { return d_->inputs; }
  std::span<const PortInfo> outputs() const noexcept { return d_->outputs; }
  std::span<const LayerInfo> layers() const noexcept { return d_->layers; }
  std::span<const ExitInfo> exits() const noexcept { return d_->exits; }
  Index parameters() const noexcept { return d_->parameters; }
  /// Everything the file computes, heads included.
  Cost total_cost() const noexcept { return d_->total; }

  /// True where a session can run it; else `why_not()` says what stands in the way, and `run` still may.
  bool has_plan() const noexcept { return d_->why_not.empty(); }
  const std::string& why_not() const noexcept { return d_->why_not; }
  /// True where samples are run one by one because the graph mixes or fixes the batch axis.
  bool runs_single_samples() const noexcept { return d_->single; }
  /// Bytes of working memory of a session of this capacity.
  Index memory_bytes(Index capacity) const { return plan_memory(*d_, d_->single ? 1 : capacity).total; }

  /// Computes every output (in the file's order) for the given inputs (in the file's order).
  std::vector<Tensor> run(std::span<const Tensor> inputs) const;
  /// The same node by node, without the prepared plan: any graph, slower.
  std::vector<Tensor> run_graph(std::span<const Tensor> inputs) const {
    const auto& o = d_->options;
    return evaluate(d_->source, inputs, {o.operators, kernel::kernels_for(o.isa), o.limits});
  }

  // ---- what a session needs (the concept EarlyExitNetwork) ----
  Index exit_count() const noexcept { return static_cast<Index>(d_->exits.size()); }
  Index class_count() const noexcept { return d_->classes; }
  Index sample_size() const noexcept { return d_->sample_size; }
  Index max_batch() const noexcept { return d_->single ? 1 : std::numeric_limits<std::int32_t>::max(); }
  Cost stage_cost(Index k) const noexcept { return d_->exits[static_cast<std::size_t>(k)].stage; }
  Cost head_cost(Index k) const noexcept { return d_->exits[static_cast<std::size_t>(k)].head; }
  State make_state(Index capacity) const;
  void load(State& s, const float* samples, Index batch) const noexcept;
  bool run_stage(State& s, Index k) const noexcept;
  bool run_head(State& s, Index k) const noexcept;
  /// The last exit alone: in a cascade, without the stages that only early exits need.
  Cost full_cost() const noexcept { return d_->full; }
  bool run_full(State& s) const noexcept;
  const float* logits(const State& s, Index k) const noexcept;
  void compact(State& s, Index k, std::span<const Index> kept) const noexcept;

  // ---- what a profiler needs ----
  /// A state for `run_layers`, of any network that has a plan.
  State make_layer_state(Index capacity) const;
  /// Runs all layers but those of heads. Calls `watch(i, run)` for `layers()[i]`, perhaps several times for a batch
  /// that goes through in chunks; `watch` calls `run()` and returns what it returned.
  template <class Watch>
  bool run_layers(State& s, Watch&& watch) const noexcept;

 private:
  // A size that grows with the batch: fixed + each * n.
  struct Affine {
    Index fixed = 0, each = 0;
    Index at(Index n) const noexcept { return fixed + each * n; }
    bool operator==(const Affine&) const = default;
  };
  struct ValueInfo {
    DType type = DType::none;
    int rank = 0;
    std::array<Affine, Shape::max_rank> sizes{};
    int storage = -1;  // values that share memory share a storage
    Index hidden = 1;  // `BatchAxis::hidden`
    const void* constant = nullptr;
    Shape at(Index n) const noexcept {
      Shape s;
      for (int i = 0; i < rank; ++i) s.push_back(sizes[static_cast<std::size_t>(i)].at(n));
      return s;
    }
    Index bytes(Index n) const noexcept { return at(n).count() * static_cast<Index>(size_of(type)); }
  };
  struct Step {
    std::unique_ptr<Operation> op;
    std::vector<ValueId> in, out;
    Index exit = 0;
    bool is_head = false, is_view = false, for_last = true;
    bool apart = false;          // computes each sample from that sample alone
    Index weight_bytes = 0;      // of the constants that it reads
    std::size_t first_view = 0;  // of its operands in a state
  };
  struct Segment {
    std::size_t begin = 0, end = 0;
  };
  // Steps of one segment that a large batch goes through in chunks, so that what they compute stays in cache.
  struct Block {
    std::size_t begin = 0, end = 0;
    Index cache = far_bytes;
    Index sample_bytes = 0;  // the most that one of the steps reads and writes for a sample
    bool whole = false;      // where samples are mixed, or a value that leaves is not one row for each of them

    Index chunk(Index n) const noexcept {
      return whole ? n : std::clamp<Index>(cache / std::max<Index>(1, sample_bytes), 1, n);
    }
  };
  // Of values, for a chunk: a quarter of a usual L3; where weights are so few that reading them again for every chunk
  // costs less, what each thread keeps in its L2.
  static constexpr Index far_bytes = 8 << 20, near_bytes = 512 << 10, few_weights = near_bytes / 24;
  struct Storage {
    std::vector<ValueId> values;
    std::size_t first = 0, last = 0;  // steps between which it must be kept
    int block = -1;                   // the block that alone uses it: it holds a chunk; -1: the batch
  };
  struct Data {
    Data() = default;
    Data(const Data& loaded, bool one_by_one)
        : source(loaded.source),
          options(loaded.options),
          single(one_by_one),
          parameters(loaded.parameters),
          inputs(loaded.inputs),
          outputs(loaded.outputs) {}

    Graph source;
    ModelOptions options;
    bool single = false;
    Index parameters = 0;
    std::vector<PortInfo> inputs, outputs;
    Graph prepared;  // owns the constants
    std::string why_not, why_no_exits;
    Index classes = 0, sample_size = 0;
    Cost total, full;
    std::vector<ExitInfo> exits;
    std::vector<LayerInfo> layers;
    std::vector<Step> steps;
    std::vector<Segment> stages, heads;
    std::vector<Block> blocks;  // of all steps, in order
    std::vector<ValueInfo> values;
    std::vector<Storage> storages;
    std::vector<ValueId> exit_values, output_values;
    std::vector<std::vector<int>> crossing;  // storages that live on behind exit k
    std::size_t view_count = 0;
  };
  struct Memory {
    std::vector<Index> offsets;  // of each storage
    Index scratch = 0, total = 0;
  };

  static std::shared_ptr<const Data> build(Graph graph, const ModelOptions& options);
  static void plan(Data& d);
  static void arrange(Data& d);
  static void assign_storage(Data& d);
  static void cut_blocks(Data& d);
  static void drop_unread(Data& d);
  static BatchAxis batch_axis(const Data& d, ValueId v) noexcept;
  static bool is_rows(const Data& d, ValueId v) noexcept;
  static Memory plan_memory(const Data& d, Index n);
  static State state_of(const Data& d, Index capacity);
  static void bind(const Data& d, State& s, std::size_t block, Index first, Index count) noexcept;
  template <bool is_full = false, class Watch>
  bool run_segment(State& s, Segment segment, Watch&& watch) const noexcept;

  std::shared_ptr<const Data> d_;
};

/// The private scratch of one session over a Model.
class Model::State {
 public:
  Index capacity() const noexcept { return capacity_; }
  Index batch() const noexcept { return batch_; }
  /// Samples that each layer has processed since the counter was reset, in the order of `Model::layers()`.
  std::span<const std::int64_t> counts() const noexcept { return counts_; }
  void reset_counts() noexcept { std::fill(counts_.begin(), counts_.end(), 0); }

 private:
  friend class Model;
  Index capacity_ = 0, batch_ = 0;
  std::shared_ptr<std::byte> memory_;
  Memory plan_;
  std::vector<TensorView> views_;
  std::vector<std::pair<Index, Index>> bound_;  // of each block: the samples [first, first + count) its views show
  std::vector<std::int64_t> counts_;
};

// ---- preparation ----------------------------------------------------------------------------------------------------

inline std::shared_ptr<const Model::Data> Model::build(Graph graph, const ModelOptions& options) {
  auto d = std::make_shared<Data>();
  d->options = options;
  d->source = std::move(graph);
  for (const Node& n : d->source.nodes) {
    if (n.op != "If" && !options.operators.has(n)) raise(Error("the operator is not supported", n.name, n.op, ""));
  }
  const auto port = [&](ValueId v) { return PortInfo{d->source[v].name, d->source[v].type, d->source[v].sizes}; };
  for (const ValueId v : d->source.inputs) d->inputs.push_back(port(v));
  for (const ValueId v : d->source.outputs) d->outputs.push_back(port(v));
  for (const Value& v : d->source.values) d->parameters += is_float(v.constant.type()) ? v.constant.count() : 0;
#if OFFRAMP_EXCEPTIONS
  // With the batch left open where the graph allows it, else sample by sample, else node by node only.
  for (const bool single : {false, true}) {
    auto trial = std::make_shared<Data>(*d, single);
    try {
      plan(*trial);
      return trial;
    } catch (const Error& e) {
      d->why_not = e.what();
    } catch (const std::bad_alloc&) {
      d->why_not = "out of memory";
    }
  }
#else
  plan(*d);
#endif
  return d;
}

inline void Model::plan(Data& d) {
  const kernel::Kernels& kernels = kernel::kernels_for(d.options.isa);
  const GraphContext context{d.options.operators,
                             kernels,
                             d.options.limits,
                             {kernels, d.options.batch, d.options.pool ? d.options.pool->threads() : 1,
                              d.options.winograd_tile, d.options.bf16}};
  const Graph& source = d.source;
  OFFRAMP_REQUIRE(!source.inputs.empty(), "the network has no input");
  for (const ValueId v : source.inputs)
    OFFRAMP_REQUIRE(size_of(source[v].type) > 0, "input '" + source[v].name + "' has a type the library does not hold");

  // Three probes tell how sizes grow with the batch; one sample at a time, they are all the same.
  const Index declared = source[source.inputs[0]].sizes.empty() ? 1 : source[source.inputs[0]].sizes[0];
  const auto batch = [&](Index n) { return d.single ? (declared == dynamic ? 1 : declared) : n; };
  const Inference two = infer(source, input_views(source, batch(2), d.options.shape, d.options.limits), context);
  const Inference three = infer(source, input_views(source, batch(3), d.options.shape, d.options.limits), context);

  // Nominal costs, from the graph as the file states it.
  const auto cost_of = [&](const Inference& shapes, std::size_t i) {
    std::vector<TensorView> in, out;
    for (const ValueId v : source.nodes[i].inputs)
      in.push_back(v == no_value ? TensorView{} : shapes.views[static_cast<std::size_t>(v)]);
    for (const ValueId v : source.nodes[i].outputs)
      out.push_back(v == no_value ? TensorView{} : shapes.views[static_cast<std::size_t>(v)]);
    return shapes.operations[i] ? shapes.operations[i]->cost(in, out) : Cost{};
  };
  std::vector<Cost> nominal;  // of one sample
  for (std::size_t i = 0; i < source.nodes.size(); ++i) {
    const Cost a = cost_of(two, i), b = cost_of(three, i);
    const Cost each = b - a;
    nominal.push_back(d.single ? a : a - each);  // what does not grow with the batch is the first sample's
  }

  d.prepared = source;
  Graph& g = d.prepared;
  for (std::size_t i = 0; i < g.nodes.size(); ++i) g.nodes[i].origins = {static_cast<int>(i)};
  passes::fold_constants(g, two, three, true);
  passes::FuseIntegers(g, two).run();
  passes::fold_constants(g, two, three);
  passes::remove_identities(g, two);
  g.remove_dead_nodes();
  passes::fold_batch_norms(g);
  passes::recognise_activations(g);
  passes::recognise_layer_norms(g, two);
  passes::fuse_matmul_bias(g);
  passes::fuse_tails(g, two);
  passes::join_pools(g, two);
  passes::ChannelsLast(g, two).run();
  g.remove_dead_nodes();
  g.sort();

  // Sizes as functions of the batch.
  d.values.assign(g.values.size(), {});
  Inference a = infer(g, input_views(g, batch(2), d.options.shape, d.options.limits), context, Prepare::all);
  const Inference b = infer(g, input_views(g, batch(3), d.options.shape, d.options.limits), context);
  const Inference c = infer(g, input_views(g, batch(5), d.options.shape, d.options.limits), context);
  for (std::size_t v = 0; v < g.values.size(); ++v) {
    const TensorView &x = a.views[v], &y = b.views[v], &z = c.views[v];
    ValueInfo& info = d.values[v];
    info.type = x.type;
    info.rank = x.shape.rank();
    bool regular = y.shape.rank() == info.rank && z.shape.rank() == info.rank && y.type == x.type;
    for (int i = 0; regular && i < info.rank; ++i) {
      const Index each = d.single ? 0 : y.shape[i] - x.shape[i];
      info.sizes[static_cast<std::size_t>(i)] = {x.shape[i] - 2 * each, each};
      regular = each >= 0 && (d.single || z.shape[i] == info.sizes[static_cast<std::size_t>(i)].at(5)) &&
                info.sizes[static_cast<std::size_t>(i)].at(1) >= 0;
    }
    OFFRAMP_REQUIRE(regular, "the size of '" + g.values[v].name + "' does not grow evenly with the batch");
    if (!g.values[v].constant.empty()) info.constant = g.values[v].constant.data();
  }

  // Parameters that a batch changes cannot be prepared; then samples are run one by one.
  std::vector<Node> nodes = g.nodes;
  for (std::size_t i = 0; i < nodes.size() && !d.single; ++i) {
    for (std::size_t k = 0; k < nodes[i].inputs.size(); ++k) {
      const ValueId v = nodes[i].inputs[k];
      if (v == no_value || !a.operations[i] || a.operations[i]->use(k) != InputUse::parameter ||
          d.values[static_cast<std::size_t>(v)].constant)
        continue;
      raise(Error("a parameter depends on the size of the batch", nodes[i].name, nodes[i].op, ""));
    }
  }
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    Step s;
    s.op = std::move(a.operations[i]);
    OFFRAMP_REQUIRE(s.op != nullptr, "an `If` depends on the input");
    s.in = nodes[i].inputs;
    s.out = nodes[i].outputs;
    if (s.out.empty()) s.out.push_back(no_value);
    // Inputs that only matter for shapes are not read: they need not be computed.
    for (std::size_t k = 0; k < s.in.size(); ++k) {
      if (s.op->use(k) == InputUse::shape && nodes[i].op != "Shape" && nodes[i].op != "Size" &&
          !d.values[static_cast<std::size_t>(std::max(0, s.in[k]))].constant &&
          (k > 0 || nodes[i].op == "ConstantOfShape"))
        s.in[k] = no_value;
    }
    std::vector<TensorView> in, out;
    for (const ValueId v : nodes[i].inputs)
      in.push_back(v == no_value ? TensorView{} : a.views[static_cast<std::size_t>(v)]);
    for (const ValueId v : nodes[i].outputs)
      out.push_back(v == no_value ? TensorView{} : a.views[static_cast<std::size_t>(v)]);
    std::vector<BatchAxis> axes_in, axes_out;
    for (const ValueId v : nodes[i].inputs) axes_in.push_back(batch_axis(d, v));
    for (const ValueId v : nodes[i].outputs) {
      if (v != no_value) axes_out.push_back(batch_axis(d, v));
    }
    s.apart = keeps_samples_apart(g, nodes[i], d.options.operators, axes_in, axes_out);
    Index hidden = 1;
    for (const BatchAxis& x : axes_in) hidden = std::max(hidden, x.hidden);
    for (const ValueId v : nodes[i].outputs) {
      if (v != no_value)
        d.values[static_cast<std::size_t>(v)].hidden =
            s.apart && only_reshapes(nodes[i]) ? axes_in[0].rounds() / batch_axis(d, v).outer : hidden;
    }
    s.is_view = !in.empty() && in[0].type != DType::none && in[0].bytes() == out[0].bytes() && s.op->is_view(in, out);
    LayerInfo layer;
    layer.name = nodes[i].name.empty() && !nodes[i].outputs.empty() && nodes[i].outputs[0] != no_value
                     ? g[nodes[i].outputs[0]].name
                     : nodes[i].name;
    layer.op = nodes[i].op;
    if (const std::string fused = nodes[i].text("offramp.activation", ""); !fused.empty()) layer.op += "+" + fused;
    if (passes::takes_tail(nodes[i]) && nodes[i].input(3) != no_value) layer.op += "+Add";
    layer.algorithm = s.is_view ? "view" : s.op->algorithm();
    for (const int origin : nodes[i].origins) {
      layer.cost.macs += nominal[static_cast<std::size_t>(origin)].macs;
      layer.cost.flops += nominal[static_cast<std::size_t>(origin)].flops;
    }
    const Index at_two = s.op->executed(in, out);
    std::vector<TensorView> in3, out3;
    for (const ValueId v : nodes[i].inputs)
      in3.push_back(v == no_value ? TensorView{} : b.views[static_cast<std::size_t>(v)]);
    for (const ValueId v : nodes[i].outputs)
      out3.push_back(v == no_value ? TensorView{} : b.views[static_cast<std::size_t>(v)]);
    if (s.op->is_integer()) layer.cost.integer = layer.cost.flops;
    layer.cost.executed = s.is_view ? 0 : d.single ? at_two : at_two - (s.op->executed(in3, out3) - at_two);
    for (const ValueId v : nodes[i].inputs) {
      if (v == no_value || !g.is_constant(v)) continue;
      const Tensor& constant = g[v].constant;
      s.weight_bytes += static_cast<Index>(constant.bytes());
      layer.parameters += is_float(constant.type()) ? constant.count() : 0;
    }
    if (!nodes[i].outputs.empty() && nodes[i].outputs[0] != no_value) {
      Shape shape = d.values[static_cast<std::size_t>(nodes[i].outputs[0])].at(1);
      if (nodes[i].integer("offramp.channels_last", 0) != 0 ||
          g[nodes[i].outputs[0]].name.ends_with(".channels_last")) {
        Shape plain;
        plain.push_back(shape[0]);
        plain.push_back(shape[shape.rank() - 1]);
        for (int k = 1; k + 1 < shape.rank(); ++k) plain.push_back(shape[k]);
        shape = plain;
      }
      layer.output = shape;
    }
    d.total += layer.cost;
    d.steps.push_back(std::move(s));
    d.layers.push_back(std::move(layer));
  }
  drop_unread(d);
  arrange(d);
  assign_storage(d);
  cut_blocks(d);
  const Memory memory = plan_memory(d, 1);
  OFFRAMP_REQUIRE(memory.total <= d.options.limits.memory_bytes,
                  "the network needs " + std::to_string(memory.total) +
                      " bytes of working memory for one sample, the limit is " +
                      std::to_string(d.options.limits.memory_bytes));
}

// Finds the exits, cuts the steps into stages and heads, and puts them in that order.
inline void Model::arrange(Data& d) {
  const std::size_t count = d.steps.size();
  std::vector<int> producer(d.values.size(), -1);
  for (std::size_t i = 0; i < count; ++i) {
    for (const ValueId v : d.steps[i].out) {
      if (v != no_value) producer[static_cast<std::size_t>(v)] = static_cast<int>(i);
    }
  }
  d.output_values = d.prepared.outputs;
  const auto needed_by = [&](ValueId v) {
    return ancestors(v, producer, count, [&](std::size_t i) -> const std::vector<ValueId>& { return d.steps[i].in; });
  };

  // Exits: every output, or those that the metadata names.
  struct Candidate {
    ValueId value;
    std::string name;
    std::vector<bool> needs;
    Index flops = 0;
  };
  std::vector<Candidate> exits;
  const auto named = d.source.metadata.find("offramp.exits");
  const auto is_named = [&](const std::string& name) {
    return named == d.source.metadata.end() || ("," + named->second + ",").find("," + name + ",") != std::string::npos;
  };
  std::set<ValueId> taken;
  for (std::size_t i = 0; i < d.output_values.size(); ++i) {
    const ValueId v = d.output_values[i];
    const std::string& name = d.outputs[i].name;
    if (!is_named(name) || !taken.insert(v).second) continue;
    const ValueInfo& info = d.values[static_cast<std::size_t>(v)];
    const Shape one = info.at(1);
    const bool rows = info.rank >= 2 && one[0] == 1 && (d.single || info.sizes[0] == Affine{0, 1});
    const Index classes = one.count();
    if (info.type != DType::f32 || !rows || classes < 2 || producer[static_cast<std::size_t>(v)] < 0) {
      d.why_no_exits = "output '" + name + "' is not one row of class scores for each sample";
    } else if (d.classes != 0 && classes != d.classes) {
      d.why_no_exits =
          "output '" + name + "' has " + std::to_string(classes) + " classes, another has " + std::to_string(d.classes);
    } else {
      d.classes = classes;
    }
    exits.push_back({v, name, needed_by(v)});
    for (std::size_t k = 0; k < count; ++k) exits.back().flops += exits.back().needs[k] ? d.layers[k].cost.flops : 0;
  }
  if (exits.empty()) d.why_no_exits = "the network has no output that is an exit";
  if (d.inputs.size() != 1 || d.inputs[0].type != DType::f32) d.why_no_exits = "sessions take one float32 input";
  if (!d.why_no_exits.empty()) {
    exits.clear();
    d.classes = 0;
  }
  // In order of cost, or as the metadata name them: a cascade's versions stay together.
  if (named == d.source.metadata.end()) {
    std::stable_sort(exits.begin(), exits.end(),
                     [](const Candidate& x, const Candidate& y) { return x.flops < y.flops; });
  } else {
    const std::string list = "," + named->second + ",";
    std::stable_sort(exits.begin(), exits.end(), [&](const Candidate& x, const Candidate& y) {
      return list.find("," + x.name + ",") < list.find("," + y.name + ",");
    });
  }

  // Each step belongs to the first exit that needs it; it is part of the head where no later exit does.
  const std::size_t last = exits.empty() ? 0 : exits.size() - 1;
  const auto extra = static_cast<Index>(last + 1);  // outputs that are no exits come after all
  for (std::size_t i = 0; i < count; ++i) {
    Step& s = d.steps[i];
    s.exit = exits.empty() ? 0 : extra;
    for (std::size_t k = exits.size(); k-- > 0;) {
      if (!exits[k].needs[i]) continue;
      s.is_head = s.exit == extra && k != last;
      s.exit = static_cast<Index>(k);
    }
    s.for_last = exits.empty() || exits.back().needs[i];
    if (s.for_last) d.full += d.layers[i].cost;
  }
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t x, std::size_t y) {
    return std::pair(d.steps[x].exit, d.steps[x].is_head) < std::pair(d.steps[y].exit, d.steps[y].is_head);
  });
  std::vector<Step> steps;
  std::vector<LayerInfo> layers;
  for (const std::size_t i : order) {
    d.layers[i].exit = std::min<Index>(d.steps[i].exit, static_cast<Index>(last));
    d.layers[i].is_head = d.steps[i].is_head;
    steps.push_back(std::move(d.steps[i]));
    layers.push_back(std::move(d.layers[i]));
  }
  d.steps = std::move(steps);
  d.layers = std::move(layers);
  std::size_t at = 0;
  const auto segment = [&](Index exit, bool head) {
    Segment s{at, at};
    while (s.end < count && d.steps[s.end].exit == exit && d.steps[s.end].is_head == head) ++s.end;
    at = s.end;
    return s;
  };
  for (std::size_t k = 0; k <= last; ++k) {
    d.stages.push_back(segment(static_cast<Index>(k), false));
    d.heads.push_back(segment(static_cast<Index>(k), true));
  }
  Cost before;
  for (std::size_t k = 0; k < exits.size(); ++k) {
    ExitInfo e;
    e.name = exits[k].name;
    for (std::size_t i = d.stages[k].begin; i < d.stages[k].end; ++i) e.stage += d.layers[i].cost;
    for (std::size_t i = d.heads[k].begin; i < d.heads[k].end; ++i) e.head += d.layers[i].cost;
    before += e.stage;
    e.upto = before + e.head;
    d.exits.push_back(std::move(e));
    d.exit_values.push_back(exits[k].value);
  }
  const ValueInfo& input = d.values[static_cast<std::size_t>(d.prepared.inputs[0])];
  d.sample_size = input.rank > 0 ? input.at(1).count() : 1;
}

// Steps that only computed shapes are not needed once those are known.
inline void Model::drop_unread(Data& d) {
  std::vector<bool> read(d.values.size(), false);
  for (const ValueId v : d.prepared.outputs) read[static_cast<std::size_t>(v)] = true;
  for (std::size_t i = d.steps.size(); i-- > 0;) {
    const Step& s = d.steps[i];
    if (std::none_of(s.out.begin(), s.out.end(),
                     [&](ValueId v) { return v != no_value && read[static_cast<std::size_t>(v)]; })) {
      d.total = d.total - d.layers[i].cost;
      d.steps.erase(d.steps.begin() + static_cast<std::ptrdiff_t>(i));
      d.layers.erase(d.layers.begin() + static_cast<std::ptrdiff_t>(i));
      continue;
    }
    for (const ValueId v : s.in) {
      if (v != no_value) read[static_cast<std::size_t>(v)] = true;
    }
  }
}

inline BatchAxis Model::batch_axis(const Data& d, ValueId v) noexcept {
  BatchAxis batch;
  if (v == no_value) return batch;
  const ValueInfo& x = d.values[static_cast<std::size_t>(v)];
  batch.rank = x.rank, batch.hidden = x.hidden;
  for (int a = 0; a < x.rank; ++a) {
    const Affine& size = x.sizes[static_cast<std::size_t>(a)];
    if (size.each == 0 && !batch.grows()) batch.outer *= size.fixed;
    if (size.each == 0) continue;
    batch.axis = batch.grows() || size.fixed != 0 ? BatchAxis::irregular : a;
  }
  batch.outer = batch.grows() ? std::max<Index>(1, batch.outer) : 1;
  return batch;
}

// Whether a value is one block of memory for each sample.
inline bool Model::is_rows(const Data& d, ValueId v) noexcept {
  const BatchAxis batch = batch_axis(d, v);
  return batch.axis == 0 && batch.hidden == 1;
}

// Views share their input's memory, elementwise work its own where nothing else needs it; everything else has its own.
inline void Model::assign_storage(Data& d) {
  const std::size_t end = d.steps.size();
  std::vector<std::size_t> last_use(d.values.size(), 0);
  std::vector<bool> is_output(d.values.size(), false);
  for (const ValueId v : d.output_values) is_output[static_cast<std::size_t>(v)] = true;
  for (std::size_t i = 0; i < end; ++i) {
    for (const ValueId v : d.steps[i].in) {
      if (v != no_value) last_use[static_cast<std::size_t>(v)] = i;
    }
  }
  const auto info = [&](ValueId v) -> ValueInfo& { return d.values[static_cast<std::size_t>(v)]; };
  const auto fresh = [&](ValueId v, std::size_t at) {
    info(v).storage = static_cast<int>(d.storages.size());
    d.storages.push_back({{v}, at, at});
  };
  for (const ValueId v : d.prepared.inputs) fresh(v, 0);
  for (std::size_t i = 0; i < end; ++i) {
    Step& s = d.steps[i];
    s.first_view = d.view_count;
    d.view_count += s.in.size() + s.out.size();
    const auto shares = [&](ValueId in, ValueId out) {
      const ValueInfo &x = info(in), &y = info(out);
      return x.storage >= 0 && x.bytes(2) == y.bytes(2) && x.bytes(3) == y.bytes(3);
    };
    if (s.is_view && !(s.in[0] != no_value && s.out[0] != no_value && shares(s.in[0], s.out[0]))) s.is_view = false;
    for (std::size_t k = 0; k < s.out.size(); ++k) {
      const ValueId out = s.out[k];
      if (out == no_value) continue;
      ValueId host = s.is_view && k == 0 ? s.in[0] : no_value;
      for (std::size_t j = 0; host == no_value && k == 0 && j < s.in.size(); ++j) {
        const ValueId in = s.in[j];
        if (in == no_value || !s.op->in_place(j) || !shares(in, out) || std::count(s.in.begin(), s.in.end(), in) != 1)
          continue;
        const Storage& storage = d.storages[static_cast<std::size_t>(info(in).storage)];
        const bool free = std::all_of(storage.values.begin(), storage.values.end(), [&](ValueId v) {
          return last_use[static_cast<std::size_t>(v)] <= i && !is_output[static_cast<std::size_t>(v)];
        });
        if (free) host = in;
      }
      if (host == no_value) {
        fresh(out, i);
      } else {
        info(out).storage = info(host).storage;
        d.storages[static_cast<std::size_t>(info(out).storage)].values.push_back(out);
      }
    }
  }
  std::vector<std::size_t> read_last(d.storages.size(), 0);
  for (std::size_t i = 0; i < d.storages.size(); ++i) {
    Storage& s = d.storages[i];
    for (const ValueId v : s.values) {
      s.last = std::max(s.last, last_use[static_cast<std::size_t>(v)]);
      read_last[i] = std::max(read_last[i], last_use[static_cast<std::size_t>(v)]);
      if (is_output[static_cast<std::size_t>(v)]) s.last = end;
    }
  }
  // What lives on behind an exit must be one block for each sample, so that answered samples can be taken out.
  for (std::size_t k = 0; k + 1 < d.exits.size(); ++k) {
    std::vector<int> crossing;
    for (std::size_t i = 0; i < d.storages.size(); ++i) {
      if (d.storages[i].first >= d.heads[k].end || read_last[i] < d.heads[k].end) continue;
      for (const ValueId v : d.storages[i].values) {
        OFFRAMP_REQUIRE(is_rows(d, v) || d.single,
                        "'" + d.prepared[v].name + "' mixes samples and is needed behind exit " + std::to_string(k));
      }
      crossing.push_back(static_cast<int>(i));
    }
    d.crossing.push_back(std::move(crossing));
  }
}

// A new block begins where all that follows in the segment is a quarter as large or less, and at both ends of a run of
// steps whose values should stay in L2.
inline void Model::cut_blocks(Data& d) {
  std::vector<Index> bytes(d.steps.size(), 0);
  for (std::size_t i = 0; i < d.steps.size(); ++i) {
    for (const auto* values : {&d.steps[i].in, &d.steps[i].out}) {
      for (const ValueId v : *values) {
        if (v != no_value && d.values[static_cast<std::size_t>(v)].storage >= 0)
          bytes[i] += d.values[static_cast<std::size_t>(v)].bytes(1);
      }
    }
  }
  std::vector<Segment> segments;
  for (std::size_t k = 0; k < d.stages.size(); ++k) {
    segments.push_back(d.stages[k]);
    segments.push_back(d.heads[k]);
  }
  const std::size_t covered = segments.empty() ? 0 : segments.back().end;
  segments.push_back({covered, d.steps.size()});
  std::vector<bool> light(d.steps.size(), false);  // in such a run
  for (const Segment& s : segments) {
    for (std::size_t i = s.begin; i < s.end;) {
      std::size_t end = i, products = 0;
      for (; end < s.end && bytes[end] <= near_bytes && d.steps[end].weight_bytes <= few_weights; ++end)
        products += d.steps[end].weight_bytes > 0 ? 1 : 0;
      for (; products > 1 && i < end; ++i) light[i] = true;
      i = end + (end == i ? 1 : 0);
    }
    std::size_t begin = s.begin;
    while (begin < s.end) {
      Block b{begin, begin + 1};
      b.sample_bytes = bytes[begin];
      if (light[begin]) b.cache = near_bytes * (d.options.pool ? d.options.pool->threads() : 1);
      while (b.end < s.end && light[b.end] == light[begin]) {
        const Index rest = *std::max_element(bytes.begin() + static_cast<std::ptrdiff_t>(b.end),
                                             bytes.begin() + static_cast<std::ptrdiff_t>(s.end));
        if (b.sample_bytes > 256 * 1024 && rest <= b.sample_bytes / 4) break;
        b.sample_bytes = std::max(b.sample_bytes, bytes[b.end++]);
      }
      for (std::size_t i = b.begin; i < b.end; ++i) b.whole = b.whole || !d.steps[i].apart;
      d.blocks.push_back(b);
      begin = b.end;
    }
  }
  const std::size_t inputs = d.prepared.inputs.size();
  for (std::size_t i = 0; i < d.storages.size(); ++i) {
    Storage& s = d.storages[i];
    for (std::size_t k = 0; k < d.blocks.size() && i >= inputs; ++k) {
      if (d.blocks[k].begin <= s.first && s.last < d.blocks[k].end) s.block = static_cast<int>(k);
    }
    if (s.block >= 0) continue;
    const bool rows = std::all_of(s.values.begin(), s.values.end(), [&](ValueId v) { return is_rows(d, v); });
    for (Block& b : d.blocks) b.whole = b.whole || (!rows && s.first < b.end && b.begin <= s.last);
  }
}

inline Model::Memory Model::plan_memory(const Data& d, Index n) {
  Memory m;
  m.offsets.assign(d.storages.size(), 0);
  std::vector<Index> sizes(d.storages.size(), 0);
  for (std::size_t i = 0; i < d.storages.size(); ++i) {
    const int block = d.storages[i].block;
    const Index held = block < 0 ? n : d.blocks[static_cast<std::size_t>(block)].chunk(n);
    for (const ValueId v : d.storages[i].values) {
      const ValueInfo& x = d.values[static_cast<std::size_t>(v)];
      const Index bytes = checked_product(x.at(held).checked_count(), static_cast<Index>(size_of(x.type)));
      OFFRAMP_REQUIRE(bytes <= d.options.limits.memory_bytes,
                      "a batch of " + std::to_string(n) + " needs more memory than the limit");
      sizes[i] = std::max(sizes[i], (bytes + 63) / 64 * 64);
    }
  }
  // What outlives a block that is walked several times lives through all of it.
  std::vector<std::pair<std::size_t, std::size_t>> lives;
  for (const Storage& s : d.storages) {
    lives.emplace_back(s.first, s.last);
    for (const Block& b : d.blocks) {
      if (s.block >= 0 || b.chunk(n) >= n) continue;
      if (b.begin <= s.first && s.first < b.end) lives.back().first = b.begin;
      if (b.begin <= s.last && s.last < b.end) lives.back().second = b.end - 1;
    }
  }
  // The largest first, each at the lowest place that is free while it lives.
  std::vector<std::size_t> order(d.storages.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t x, std::size_t y) { return sizes[x] > sizes[y]; });
  std::vector<std::size_t> placed;
  for (const std::size_t i : order) {
    std::vector<std::pair<Index, Index>> busy;
    for (const std::size_t j : placed) {
      if (lives[i].first <= lives[j].second && lives[j].first <= lives[i].second)
        busy.emplace_back(m.offsets[j], m.offsets[j] + sizes[j]);
    }
    std::sort(busy.begin(), busy.end());
    Index at = 0;
    for (const auto& [from, to] : busy) {
      if (at + sizes[i] <= from) break;
      at = std::max(at, to);
    }
    m.offsets[i] = at;
    m.total = std::max(m.total, at + sizes[i]);
    placed.push_back(i);
  }
  m.scratch = m.total;
  std::vector<TensorView> in, out;
  Index scratch = 0;
  const auto view = [&](ValueId v, Index count) {
    TensorView x;
    if (v == no_value) return x;
    const ValueInfo& info = d.values[static_cast<std::size_t>(v)];
    x.type = info.type;
    x.shape = info.at(count);
    return x;
  };
  for (const Block& b : d.blocks) {
    for (std::size_t i = b.begin; i < b.end; ++i) {
      const Step& s = d.steps[i];
      in.clear();
      out.clear();
      for (const ValueId v : s.in) in.push_back(view(v, b.chunk(n)));
      for (const ValueId v : s.out) out.push_back(view(v, b.chunk(n)));
      scratch = std::max(scratch, static_cast<Index>(s.op->scratch_bytes(in, out)));
    }
  }
  m.total += (scratch + 63) / 64 * 64;
  return m;
}

// ---- running --------------------------------------------------------------------------------------------------------

inline Model::State Model::make_state(Index capacity) const {
  const Data& d = *d_;
  OFFRAMP_REQUIRE(has_plan(), why_not());
  OFFRAMP_REQUIRE(capacity > 0, "a session needs room for at least one sample");
  OFFRAMP_REQUIRE(!d.exits.empty(), d.why_no_exits);
  return state_of(d, d.single ? 1 : capacity);
}

inline Model::State Model::make_layer_state(Index capacity) const {
  OFFRAMP_REQUIRE(has_plan(), why_not());
  OFFRAMP_REQUIRE(capacity > 0, "a state needs room for at least one sample");
  return state_of(*d_, d_->single ? 1 : capacity);
}

inline Model::State Model::state_of(const Data& d, Index capacity) {
  State s;
  s.capacity_ = capacity;
  s.plan_ = plan_memory(d, capacity);
  OFFRAMP_REQUIRE(s.plan_.total <= d.options.limits.memory_bytes,
                  "a batch of " + std::to_string(capacity) + " needs " + std::to_string(s.plan_.total) +
                      " bytes, the limit is " + std::to_string(d.options.limits.memory_bytes));
  s.memory_ = allocate_aligned(static_cast<std::size_t>(s.plan_.total));
  s.views_.resize(d.view_count);
  s.bound_.assign(d.blocks.size(), {-1, -1});
  s.counts_.assign(d.steps.size(), 0);
  s.batch_ = capacity;
  return s;
}

inline void Model::bind(const Data& d, State& s, std::size_t block, Index first, Index count) noexcept {
  if (s.bound_[block] == std::pair(first, count)) return;
  s.bound_[block] = {first, count};
  for (std::size_t i = d.blocks[block].begin; i < d.blocks[block].end; ++i) {
    const Step& step = d.steps[i];
    std::size_t at = step.first_view;
    const auto set = [&](ValueId v) {
      TensorView& x = s.views_[at++];
      if (v == no_value) return;
      const ValueInfo& info = d.values[static_cast<std::size_t>(v)];
      x.type = info.type;
      x.shape = info.at(count);
      if (info.storage < 0) {  // kernels do not write through inputs; a view has one kind of pointer
        x.data = const_cast<void*>(info.constant);
        return;
      }
      const auto u = static_cast<std::size_t>(info.storage);
      x.data =
          s.memory_.get() + s.plan_.offsets[u] + (d.storages[u].block < 0 && first > 0 ? first * info.bytes(1) : 0);
    };
    for (const ValueId v : step.in) set(v);
    for (const ValueId v : step.out) set(v);
  }
}

inline void Model::load(State& s, const float* samples, Index batch) const noexcept {
  s.batch_ = batch;
  const ValueInfo& input = d_->values[static_cast<std::size_t>(d_->prepared.inputs[0])];
  std::memcpy(s.memory_.get() + s.plan_.offsets[static_cast<std::size_t>(input.storage)], samples,
              static_cast<std::size_t>(batch * d_->sample_size) * sizeof(float));
}

template <bool is_full, class Watch>
bool Model::run_segment(State& s, Segment segment, Watch&& watch) const noexcept {
  const kernel::Kernels& kernels = kernel::kernels_for(d_->options.isa);
  const ExecutorRef executor = d_->options.pool ? ExecutorRef(*d_->options.pool) : ExecutorRef();
  bool ok = true;
  for (std::size_t k = 0; k < d_->blocks.size(); ++k) {
    const Block& block = d_->blocks[k];
    if (block.begin < segment.begin || block.end > segment.end) continue;
    const Index chunk = block.chunk(s.batch_);
    for (Index first = 0; first < s.batch_; first += chunk) {
      const Index count = std::min(chunk, s.batch_ - first);
      bind(*d_, s, k, first, count);
      for (std::size_t i = block.begin; i < block.end; ++i) {
        const Step& step = d_->steps[i];
        if (step.is_view || (is_full && !step.for_last)) continue;
        const std::span<const TensorView> all(s.views_.data() + step.first_view, step.in.size() + step.out.size());
        const OperationRun run{all.first(step.in.size()), all.subspan(step.in.size()),
                               s.memory_.get() + s.plan_.scratch, kernels, executor};
        ok = watch(i, [&]() noexcept { return step.op->forward(run); }) && ok;
#if OFFRAMP_COUNT_FLOPS
        s.counts_[i] += count;
#endif
      }
    }
  }
  return ok;
}

template <class Watch>
bool Model::run_layers(State& s, Watch&& watch) const noexcept {
  bool ok = true;
  const std::size_t end = d_->stages.empty() ? 0 : d_->heads.back().end;
  for (const Segment& stage : d_->stages) ok = run_segment<true>(s, stage, watch) && ok;
  return run_segment(s, {end, d_->steps.size()}, watch) && ok;
}

inline bool Model::run_stage(State& s, Index k) const noexcept {
  return run_segment(s, d_->stages[static_cast<std::size_t>(k)], [](std::size_t, const auto& run) { return run(); });
}
inline bool Model::run_head(State& s, Index k) const noexcept {
  return run_segment(s, d_->heads[static_cast<std::size_t>(k)], [](std::size_t, const auto& run) { return run(); });
}

inline bool Model::run_full(State& s) const noexcept {
  bool ok = true;
  for (const Segment& stage : d_->stages)
    ok = run_segment<true>(s, stage, [](std::size_t, const auto& run) { return run(); }) && ok;
  return ok;
}

inline const float* Model::logits(const State& s, Index k) const noexcept {
  const ValueInfo& info = d_->values[static_cast<std::size_t>(d_->exit_values[static_cast<std::size_t>(k)])];
  return reinterpret_cast<const float*>(s.memory_.get() + s.plan_.offsets[static_cast<std::size_t>(info.storage)]);
}

inline void Model::compact(State& s, Index k, std::span<const Index> kept) const noexcept {
  const Data& d = *d_;
  for (const int i : d.crossing[static_cast<std::size_t>(k)]) {
    const auto u = static_cast<std::size_t>(i);
    const auto row = static_cast<std::size_t>(d.values[static_cast<std::size_t>(d.storages[u].values[0])].bytes(1));
    std::byte* base = s.memory_.get() + s.plan_.offsets[u];
    for (std::size_t to = 0; to < kept.size(); ++to) {
      const auto from = static_cast<std::size_t>(kept[to]);
      if (from != to) std::memcpy(base + to * row, base + from * row, row);
    }
  }
  s.batch_ = static_cast<Index>(kept.size());
}

inline std::vector<Tensor> Model::run(std::span<const Tensor> inputs) const {
  const Data& d = *d_;
  OFFRAMP_REQUIRE(inputs.size() == d.inputs.size(),
                  "expected " + std::to_string(d.inputs.size()) + " inputs, found " + std::to_string(inputs.size()));
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const PortInfo& p = d.inputs[i];
    OFFRAMP_REQUIRE(inputs[i].type() == p.type, "input '" + p.name + "': expected " + std::string(name_of(p.type)) +
                                                    ", found " + std::string(name_of(inputs[i].type())));
  }
  if (!has_plan()) return run_graph(inputs);
  const auto input_shape = [&](std::size_t i, Index n) {
    return d.values[static_cast<std::size_t>(d.prepared.inputs[i])].at(n);
  };
  Index n = 1;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].shape().rank() > 0) {
      n = inputs[i].shape()[0];
      break;
    }
  }
  // Sample by sample where the batch is not open but every input and output has one sample in front.
  bool split = d.single && n != 1;
  for (std::size_t i = 0; split && i < inputs.size(); ++i)
    split = input_shape(i, 1).rank() > 0 && input_shape(i, 1)[0] == 1 && inputs[i].shape().rank() > 0 &&
            inputs[i].shape()[0] == n;
  for (const ValueId v : d.output_values)
    split =
        split && d.values[static_cast<std::size_t>(v)].rank > 0 && d.values[static_cast<std::size_t>(v)].at(1)[0] == 1;
  OFFRAMP_REQUIRE(n > 0 || !split, "the batch is empty");
  const Index runs = split ? n : 1;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    Shape expected = input_shape(i, d.single ? 1 : n);
    if (split) expected[0] = n;
    OFFRAMP_REQUIRE(inputs[i].shape() == expected, "input '" + d.inputs[i].name + "': expected shape " +
                                                       expected.text() + ", found " + inputs[i].shape().text());
  }
  const Index each = d.single ? 1 : n;
  OFFRAMP_REQUIRE(each > 0, "the batch is empty");
  State s = state_of(d, each);
  std::vector<Tensor> results;
  for (const ValueId v : d.output_values) {
    const ValueInfo& info = d.values[static_cast<std::size_t>(v)];
    Shape shape = info.at(each);
    if (split) shape[0] = n;
    results.emplace_back(info.type, shape, d.options.limits.memory_bytes);
  }
  for (Index r = 0; r < runs; ++r) {
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const ValueInfo& info = d.values[static_cast<std::size_t>(d.prepared.inputs[i])];
      const std::size_t bytes = inputs[i].bytes() / static_cast<std::size_t>(runs);
      if (bytes > 0)
        std::memcpy(s.memory_.get() + s.plan_.offsets[static_cast<std::size_t>(info.storage)],
                    static_cast<const std::byte*>(inputs[i].data()) + static_cast<std::size_t>(r) * bytes, bytes);
    }
    OFFRAMP_REQUIRE(run_segment(s, {0, d.steps.size()}, [](std::size_t, const auto& step) { return step(); }),
                    "an index in the data is out of range");
    for (std::size_t i = 0; i < results.size(); ++i) {
      const ValueInfo& info = d.values[static_cast<std::size_t>(d.output_values[i])];
      const std::size_t bytes = results[i].bytes() / static_cast<std::size_t>(runs);
      const void* from =
          info.storage < 0 ? info.constant : s.memory_.get() + s.plan_.offsets[static_cast<std::size_t>(info.storage)];
      if (bytes > 0)
        std::memcpy(static_cast<std::byte*>(results[i].mutable_data()) + static_cast<std::size_t>(r) * bytes, from,
                    bytes);
    }
  }
  return results;
}

}  // namespace offramp

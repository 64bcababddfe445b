/// @file model_prepare.hpp
/// From a graph to a prepared network: passes, packed weights, sizes as functions of the batch, stages, memory.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <new>
#include <numeric>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "offramp/graph/infer.hpp"
#include "offramp/graph/integer_passes.hpp"
#include "offramp/graph/model_data.hpp"
#include "offramp/graph/passes.hpp"
#include "offramp/graph/samples.hpp"
#include "offramp/kernel/dispatch.hpp"

namespace offramp {

OFFRAMP_SEPARABLE OFFRAMP_COLD Model::Model(Graph graph, const ModelOptions& options)
    : d_(Data::build(std::move(graph), options)) {}

OFFRAMP_SEPARABLE OFFRAMP_COLD std::shared_ptr<const Model::Data> Model::Data::build(Graph graph,
                                                                                     const ModelOptions& options) {
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
    std::string why;
    try {
      d->single = single;
      d->why_not.clear();
      plan(*d);
      return d;
    } catch (const Error& e) {
      if (!d->has_graph) throw;
      why = e.what();
    } catch (const std::bad_alloc&) {
      if (!d->has_graph) raise("out of memory");
      why = "out of memory";
    }
    d = std::make_shared<Data>(std::move(*d));  // as it was loaded
    d->why_not = std::move(why);
  }
#else
  plan(*d);
#endif
  return d;
}

OFFRAMP_SEPARABLE OFFRAMP_COLD std::vector<TensorView> Model::Data::views_of(std::span<const ValueId> values,
                                                                             const Inference& shapes) {
  std::vector<TensorView> views;
  for (const ValueId v : values)
    views.push_back(v == no_value ? TensorView{} : shapes.views[static_cast<std::size_t>(v)]);
  return views;
}

// The passes, from the graph as the file states it to the one that runs.
OFFRAMP_SEPARABLE OFFRAMP_COLD void Model::Data::rewrite(Data& d, const Inference& two, const Inference& three,
                                                         const GraphContext& context) {
  d.prepared = d.source;
  Graph& g = d.prepared;
  for (std::size_t i = 0; i < g.nodes.size(); ++i) g.nodes[i].origins = {static_cast<int>(i)};
  // A user's operator in place of a built-in one is nothing that the passes know.
  constexpr char own_mark = '#';
  for (Node& n : g.nodes) {
    if (d.options.operators.is_own(n)) n.op.insert(n.op.begin(), own_mark);
  }
  passes::fold_constants(g, two, three);
  passes::FuseIntegers(g, two).run();
  passes::dequantize_constants(g, context);
  passes::remove_identities(g, two);
  g.remove_dead_nodes();
  passes::fold_batch_norms(g);
  passes::fold_input_scales(g, two);
  passes::recognise_activations(g);
  passes::recognise_layer_norms(g, two);
  passes::FuseAttention(g, two, three).run();
  passes::fuse_matmul_bias(g);
  passes::fuse_tails(g, two);
  passes::fuse_poolings(g, two);
  passes::join_pools(g, two);
  passes::join_slices(g, two, three);
  passes::ChannelsLast(g, two).run();
  for (Node& n : g.nodes) {
    if (n.op.starts_with(own_mark)) n.op.erase(n.op.begin());
  }
  g.remove_dead_nodes();
  g.sort();
}

OFFRAMP_SEPARABLE OFFRAMP_COLD void Model::Data::plan(Data& d) {
  const kernel::Kernels& kernels = kernel::kernels_for(d.options.isa);
  const Index threads = d.threads();
  const bool shares = !d.single && d.options.batch >= threads;  // samples, as blocks do
  const GraphContext context{d.options.operators,
                             kernels,
                             d.options.limits,
                             {kernels, shares ? (d.options.batch + threads - 1) / threads : d.options.batch,
                              shares ? 1 : threads, d.options.winograd_tile, d.options.bf16, nullptr},
                             true};
  const Graph& source = d.source;
  OFFRAMP_REQUIRE(!source.inputs.empty(), "the network has no input");
  for (const ValueId v : source.inputs)
    OFFRAMP_REQUIRE(size_of(source[v].type) > 0, "input '" + source[v].name + "' has a type the library does not hold");

  // Three probes tell how sizes grow with the batch; one sample at a time, they are all the same.
  const Index declared = source[source.inputs[0]].sizes.empty() ? 1 : source[source.inputs[0]].sizes[0];
  const auto batch = [&](Index n) { return d.single ? (declared == dynamic ? 1 : declared) : n; };
  std::vector<Cost> nominal;  // of one sample
  {
    const Inference two = infer(source, input_views(source, batch(2), d.options.shape, d.options.limits), context);
    const Inference three = infer(source, input_views(source, batch(3), d.options.shape, d.options.limits), context);

    // Nominal costs, from the graph as the file states it.
    const auto cost_of = [&](const Inference& shapes, std::size_t i) {
      const Node& n = source.nodes[i];
      return shapes.operations[i] ? shapes.operations[i]->cost(views_of(n.inputs, shapes), views_of(n.outputs, shapes))
                                  : Cost{};
    };
    for (std::size_t i = 0; i < source.nodes.size(); ++i) {
      const Cost a = cost_of(two, i), b = cost_of(three, i);
      const Cost each = b - a;
      nominal.push_back(d.single ? a : a - each);  // what does not grow with the batch is the first sample's
    }

    rewrite(d, two, three, context);
  }  // what was computed ahead is in the graph now, and need not stay beside it
  Graph& g = d.prepared;

  // Sizes as functions of the batch.
  d.values.assign(g.values.size(), {});
  Inference a = infer(g, input_views(g, batch(2), d.options.shape, d.options.limits), context);
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
  const std::vector<Node>& nodes = g.nodes;
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
    s.node = i;
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
    const std::vector<TensorView> in = views_of(nodes[i].inputs, a), out = views_of(nodes[i].outputs, a);
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
    if (const std::string pool = nodes[i].text("offramp.pooling", ""); !pool.empty()) layer.op += "+" + pool;
    for (const int origin : nodes[i].origins) {
      layer.cost.macs += nominal[static_cast<std::size_t>(origin)].macs;
      layer.cost.flops += nominal[static_cast<std::size_t>(origin)].flops;
    }
    if (s.op->is_integer()) layer.cost.integer = layer.cost.flops;
    for (const ValueId v : nodes[i].inputs) {
      if (v == no_value || !g.is_constant(v)) continue;
      const Tensor& constant = g[v].constant;
      layer.weight_bytes += static_cast<Index>(constant.bytes());
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
    d.steps.push_back(std::move(s));
    d.layers.push_back(std::move(layer));
  }
  drop_unread(d);
  arrange(d);
  assign_storage(d);
  pack(d, a, b, context);
  look_ahead(d);
  add_costs(d);
  cut_blocks(d);
  const Memory memory = plan_memory(d, 1);
  OFFRAMP_REQUIRE(memory.total <= d.options.limits.memory_bytes,
                  "the network needs " + std::to_string(memory.total) +
                      " bytes of working memory for one sample, the limit is " +
                      std::to_string(d.options.limits.memory_bytes));
}

// Finds the exits, cuts the steps into stages and heads, and puts them in that order.
OFFRAMP_SEPARABLE OFFRAMP_COLD void Model::Data::arrange(Data& d) {
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
  std::vector<std::pair<Index, Index>> ranks;  // and where it stands
  for (const Candidate& e : exits) {
    const auto at = static_cast<Index>(ranks.size());
    ranks.emplace_back(named == d.source.metadata.end()
                           ? e.flops
                           : static_cast<Index>(("," + named->second + ",").find("," + e.name + ",")),
                       at);
  }
  std::sort(ranks.begin(), ranks.end());
  std::vector<Candidate> sorted;
  for (const auto& [rank, at] : ranks) sorted.push_back(std::move(exits[static_cast<std::size_t>(at)]));
  exits = std::move(sorted);

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
  }
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t x, std::size_t y) {
    return std::tuple(d.steps[x].exit, d.steps[x].is_head, x) < std::tuple(d.steps[y].exit, d.steps[y].is_head, y);
  });
  std::vector<Step> steps;
  std::vector<LayerInfo> layers;
  for (const std::size_t i : order) {
    d.layers[i].exit = d.steps[i].exit == extra ? -1 : d.steps[i].exit;
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
  for (Candidate& e : exits) {
    d.exits.push_back({std::move(e.name), {}, {}, {}});
    d.exit_values.push_back(e.value);
  }
  const ValueInfo& input = d.values[static_cast<std::size_t>(d.prepared.inputs[0])];
  d.sample_size = input.rank > 0 ? input.at(1).count() : 1;
}

// Packs the weights of each step, from here on for good: where the graph is not kept, weights go as they are packed.
OFFRAMP_SEPARABLE OFFRAMP_COLD void Model::Data::pack(Data& d, const Inference& two, const Inference& three,
                                                      const GraphContext& context) {
  Graph& g = d.prepared;
  std::vector<Index> readers(g.values.size(), 0);
  for (const ValueId v : g.outputs) ++readers[static_cast<std::size_t>(v)];
  for (const Step& s : d.steps) {
    for (const ValueId v : g.nodes[s.node].inputs) {
      if (v != no_value) ++readers[static_cast<std::size_t>(v)];
    }
  }
  const auto let_go = [&](std::size_t v) {
    g.values[v].constant = {};
    d.values[v].constant = nullptr;
  };
  if (!d.options.keep_graph) {
    Graph rest;
    rest.metadata = std::move(d.source.metadata);
    d.source = std::move(rest);
    d.has_graph = false;
    for (std::size_t v = 0; v < readers.size(); ++v) {  // what passes have replaced, as weights in front of a norm
      if (readers[v] == 0) let_go(v);
    }
  }
  for (std::size_t i = 0; i < d.steps.size(); ++i) {
    Step& s = d.steps[i];
    LayerInfo& layer = d.layers[i];
    const Node& node = g.nodes[s.node];
    const std::vector<TensorView> in = views_of(node.inputs, two), out = views_of(node.outputs, two);
    const bool ran = std::any_of(node.outputs.begin(), node.outputs.end(), [&](ValueId v) {
      return v != no_value && !two.known[static_cast<std::size_t>(v)].empty();
    });
    PrepareOptions how = context.prepare;
    if (const ConvMethods* methods = d.options.conv_methods.get()) {
      if (const auto at = methods->find(layer.name); at != methods->end()) how.conv_method = &at->second;
    }
    if (!ran) at_node(node, [&] { s.op->prepare(in, how); });
    layer.algorithm = s.is_view ? "view" : s.op->algorithm();
    if (s.is_view) {  // as is known only now
      layer.weight_bytes = 0;
    } else {
      const auto moved = [](std::span<const TensorView> of) {
        Index bytes = 0;
        for (const TensorView& v : of) bytes += v.type == DType::none ? 0 : static_cast<Index>(v.bytes());
        return bytes;
      };
      const std::vector<TensorView> in3 = views_of(node.inputs, three), out3 = views_of(node.outputs, three);
      const auto of_one = [&](Index at_two, Index at_three) { return d.single ? at_two : 2 * at_two - at_three; };
      layer.bytes = of_one(moved(in) + moved(out), moved(in3) + moved(out3));
      layer.cost.executed = of_one(s.op->executed(in, out), s.op->executed(in3, out3));
      layer.transformed = of_one(s.op->transformed(in), s.op->transformed(in3));
    }
    for (std::size_t k = 0; k < node.inputs.size() && !d.has_graph; ++k) {
      if (node.inputs[k] == no_value || !s.op->has_packed(k)) continue;
      const auto v = static_cast<std::size_t>(node.inputs[k]);
      if (--readers[v] == 0) let_go(v);
    }
  }
}

// Tells each step which weights the next one that reads any would wait for: as much of them as comes beside a small
// convolution.
OFFRAMP_SEPARABLE OFFRAMP_COLD void Model::Data::look_ahead(Data& d) {
  constexpr std::size_t least = 1 << 10, most = 32 << 10;
  constexpr Index least_work = 8;  // FLOPs a byte; less waits
  const auto weights_of = [&](const Step& s) {
    std::span<const std::byte> weights = s.op->packed();
    if (!weights.empty()) return weights;
    for (const ValueId v : s.in) {
      if (v == no_value || !d.values[static_cast<std::size_t>(v)].constant) continue;
      const ValueInfo& info = d.values[static_cast<std::size_t>(v)];
      const auto bytes = static_cast<std::size_t>(info.bytes(1));
      if (bytes > weights.size()) weights = {static_cast<const std::byte*>(info.constant), bytes};
    }
    return weights;
  };
  for (const bool is_full : {false, true}) {
    std::span<const std::byte> next;
    for (std::size_t i = d.steps.size(); i-- > 0;) {
      Step& s = d.steps[i];
      if (!s.runs(is_full)) continue;
      s.next[is_full ? 1 : 0] = next;
      const std::span<const std::byte> own = weights_of(s);
      if (own.size() < least) continue;
      const bool waits = d.layers[i].cost.executed < least_work * d.layers[i].weight_bytes;
      next = waits ? own.first(std::min(most, own.size())) : std::span<const std::byte>();
    }
  }
}

OFFRAMP_SEPARABLE OFFRAMP_COLD void Model::Data::add_costs(Data& d) {
  for (std::size_t i = 0; i < d.steps.size(); ++i) {
    d.total += d.layers[i].cost;
    if (d.steps[i].for_last) d.full += d.layers[i].cost;
  }
  Cost before;
  for (std::size_t k = 0; k < d.exits.size(); ++k) {
    ExitInfo& e = d.exits[k];
    for (std::size_t i = d.stages[k].begin; i < d.stages[k].end; ++i) e.stage += d.layers[i].cost;
    for (std::size_t i = d.heads[k].begin; i < d.heads[k].end; ++i) e.head += d.layers[i].cost;
    before += e.stage;
    e.upto = before + e.head;
  }
}

// Steps that only computed shapes are not needed once those are known.
OFFRAMP_SEPARABLE OFFRAMP_COLD void Model::Data::drop_unread(Data& d) {
  std::vector<bool> read(d.values.size(), false);
  for (const ValueId v : d.prepared.outputs) read[static_cast<std::size_t>(v)] = true;
  for (std::size_t i = d.steps.size(); i-- > 0;) {
    const Step& s = d.steps[i];
    if (std::none_of(s.out.begin(), s.out.end(),
                     [&](ValueId v) { return v != no_value && read[static_cast<std::size_t>(v)]; })) {
      d.steps.erase(d.steps.begin() + static_cast<std::ptrdiff_t>(i));
      d.layers.erase(d.layers.begin() + static_cast<std::ptrdiff_t>(i));
      continue;
    }
    for (const ValueId v : s.in) {
      if (v != no_value) read[static_cast<std::size_t>(v)] = true;
    }
  }
}

OFFRAMP_SEPARABLE BatchAxis Model::Data::batch_axis(const Data& d, ValueId v) noexcept {
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
OFFRAMP_SEPARABLE bool Model::Data::is_rows(const Data& d, ValueId v) noexcept {
  const BatchAxis batch = batch_axis(d, v);
  return batch.axis == 0 && batch.hidden == 1;
}

// Views share their input's memory, elementwise work its own where nothing else needs it; everything else has its own.
OFFRAMP_SEPARABLE OFFRAMP_COLD void Model::Data::assign_storage(Data& d) {
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

// A new block begins where all that follows in the segment is a quarter as large or less, at both ends of a run of
// steps whose values should stay in L2, and, where threads share samples, between steps that do more than to read their
// weights and steps that do not.
OFFRAMP_SEPARABLE OFFRAMP_COLD void Model::Data::cut_blocks(Data& d) {
  std::vector<Index> bytes(d.steps.size(), 0);
  for (std::size_t i = 0; i < d.steps.size(); ++i) {
    for (const auto* values : {&d.steps[i].in, &d.steps[i].out}) {
      for (const ValueId v : *values) {
        if (v != no_value && d.values[static_cast<std::size_t>(v)].storage >= 0)
          bytes[i] += d.values[static_cast<std::size_t>(v)].bytes(1);
      }
    }
  }
  // Samples that make up for reading a step's weights: four multiply-adds a float, 24 where they are so many that they
  // come from memory. None where there are few weights.
  std::vector<Index> least(d.steps.size(), 0);
  for (std::size_t i = 0; i < d.steps.size() && d.threads() > 1; ++i) {
    const Cost& cost = d.layers[i].cost;
    const Index weights = d.layers[i].weight_bytes;
    if (weights <= few_weights || cost.macs == 0) continue;
    const auto packed = static_cast<Index>(d.steps[i].op->packed().size());
    const Index read = std::max(packed, weights);
    const bool is_far = read > far_bytes;
    const Index work = std::max<Index>(1, (is_far ? cost.executed / 2 : cost.macs) / (cost.integer > 0 ? 4 : 1)),
                wanted = is_far ? 6 * read : weights;
    least[i] = std::max<Index>(1, (wanted + work / 2) / work);
  }
  // Where a value crosses that is not one row for each sample, a cut would keep both sides whole.
  std::vector<bool> mixed(d.steps.size() + 1, false);
  for (const Storage& s : d.storages) {
    if (std::all_of(s.values.begin(), s.values.end(), [&](ValueId v) { return is_rows(d, v); })) continue;
    for (std::size_t i = s.first + 1; i <= std::min(s.last, d.steps.size()); ++i) mixed[i] = true;
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
      for (; end < s.end && bytes[end] <= near_bytes / 2 && d.layers[end].weight_bytes <= few_weights; ++end)
        products += d.layers[end].weight_bytes > 0 ? 1 : 0;
      for (; products > 1 && i < end; ++i) light[i] = true;
      i = end + (end == i ? 1 : 0);
    }
    std::size_t begin = s.begin;
    while (begin < s.end) {
      Block b{begin, begin + 1};
      b.threads = d.threads();
      b.sample_bytes = bytes[begin];
      b.least = least[begin];
      b.near = light[begin];
      while (b.end < s.end) {
        const bool differs =
            light[b.end] != light[begin] || (least[b.end] > 0 && b.least > 0 && (least[b.end] > 1) != (b.least > 1));
        if (differs && !mixed[b.end]) break;
        const Index rest = *std::max_element(bytes.begin() + static_cast<std::ptrdiff_t>(b.end),
                                             bytes.begin() + static_cast<std::ptrdiff_t>(s.end));
        if (b.sample_bytes > 256 * 1024 && rest <= b.sample_bytes / 4 && !mixed[b.end]) break;
        b.near = b.near && light[b.end];
        b.sample_bytes = std::max(b.sample_bytes, bytes[b.end]);
        b.least = std::max(b.least, least[b.end++]);
      }
      b.least = std::max<Index>(1, b.least);
      for (std::size_t i = b.begin; i < b.end; ++i) {
        b.whole = b.whole || !d.steps[i].apart;
        if (b.near && !d.single)  // what a sample takes of L2
          b.sample_bytes =
              std::max(b.sample_bytes, bytes[i] + scratch_of(d, d.steps[i], 2, 1) - scratch_of(d, d.steps[i], 1, 1));
      }
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

// Pieces of memory, each with the steps [first, last] through which it lives: the largest first, each at the lowest
// place that is free while it lives. Returns the end of all.
OFFRAMP_SEPARABLE OFFRAMP_COLD Index Model::Data::place(std::span<const Piece> pieces, std::span<Index> offsets) {
  std::vector<std::size_t> order(pieces.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t x, std::size_t y) {
    return pieces[x].bytes != pieces[y].bytes ? pieces[x].bytes > pieces[y].bytes : x < y;
  });
  Index total = 0;
  std::vector<std::size_t> placed;
  for (const std::size_t i : order) {
    std::vector<std::pair<Index, Index>> busy;
    for (const std::size_t j : placed) {
      if (pieces[i].first <= pieces[j].last && pieces[j].first <= pieces[i].last)
        busy.emplace_back(offsets[j], offsets[j] + pieces[j].bytes);
    }
    std::sort(busy.begin(), busy.end());
    Index at = 0;
    for (const auto& [from, to] : busy) {
      if (at + pieces[i].bytes <= from) break;
      at = std::max(at, to);
    }
    offsets[i] = at;
    total = std::max(total, at + pieces[i].bytes);
    placed.push_back(i);
  }
  return total;
}

// Scratch memory of a step for so many samples, whole cache lines.
OFFRAMP_SEPARABLE OFFRAMP_COLD Index Model::Data::scratch_of(const Data& d, const Step& s, Index samples,
                                                             Index threads) {
  std::vector<TensorView> in, out;
  const auto view = [&](ValueId v) {
    TensorView x;
    if (v == no_value) return x;
    const ValueInfo& info = d.values[static_cast<std::size_t>(v)];
    x.type = info.type;
    x.shape = info.at(samples);
    return x;
  };
  for (const ValueId v : s.in) in.push_back(view(v));
  for (const ValueId v : s.out) out.push_back(view(v));
  return (static_cast<Index>(s.op->scratch_bytes(in, out, threads)) + 63) / 64 * 64;
}

OFFRAMP_SEPARABLE OFFRAMP_COLD Model::Memory Model::Data::plan_memory(const Data& d, Index n) {
  Memory m;
  m.offsets.assign(d.storages.size(), 0);
  m.own.assign(d.blocks.size(), 0);
  std::vector<Piece> pieces;
  for (std::size_t i = 0; i < d.storages.size(); ++i) {
    const Storage& s = d.storages[i];
    const Index held = s.block < 0 ? n : d.blocks[static_cast<std::size_t>(s.block)].most(n);
    Piece piece{0, s.first, s.last};
    for (const ValueId v : s.values) {
      const ValueInfo& x = d.values[static_cast<std::size_t>(v)];
      const Index bytes = checked_product(x.at(held).checked_count(), static_cast<Index>(size_of(x.type)));
      OFFRAMP_REQUIRE(bytes <= d.options.limits.memory_bytes,
                      "a batch of " + std::to_string(n) + " needs more memory than the limit");
      piece.bytes = std::max(piece.bytes, (bytes + 63) / 64 * 64);
    }
    // What outlives a block that is walked several times lives through all of it.
    for (const Block& b : d.blocks) {
      if (s.block >= 0 || b.chunk(n) >= n) continue;
      if (b.begin <= s.first && s.first < b.end) piece.first = b.begin;
      if (b.begin <= s.last && s.last < b.end) piece.last = b.end - 1;
    }
    pieces.push_back(piece);
  }
  // What threads have of their own in a block that they walk side by side is one piece, with a part for each.
  std::vector<std::size_t> owners(d.storages.size());  // the piece that a storage lies in
  std::iota(owners.begin(), owners.end(), std::size_t{0});
  for (std::size_t k = 0; k < d.blocks.size(); ++k) {
    const Block& b = d.blocks[k];
    if (!b.shares(n)) continue;
    std::vector<std::size_t> inside;
    for (std::size_t i = 0; i < d.storages.size(); ++i) {
      if (d.storages[i].block == static_cast<int>(k)) inside.push_back(i);
    }
    std::vector<Piece> own;
    for (const std::size_t i : inside) own.push_back(std::exchange(pieces[i], {0, b.begin, b.begin}));
    std::vector<Index> offsets(own.size(), 0);
    m.own[k] = place(own, offsets);
    for (std::size_t i = 0; i < inside.size(); ++i)
      m.offsets[inside[i]] = offsets[i], owners[inside[i]] = pieces.size();
    pieces.push_back({checked_product(m.own[k], b.threads), b.begin, b.end - 1});
  }
  std::vector<Index> places(pieces.size(), 0);
  m.scratch = m.total = place(pieces, places);
  for (std::size_t i = 0; i < owners.size(); ++i) m.offsets[i] += places[owners[i]];
  Index most = 0;
  for (const Block& b : d.blocks) {
    for (std::size_t i = b.begin; i < b.end; ++i) {
      const Step& s = d.steps[i];
      if (b.shares(n)) m.own_scratch = std::max(m.own_scratch, scratch_of(d, s, b.chunk(n), 1));
      most = std::max(most, scratch_of(d, s, b.shares(n) ? b.chunk(b.threads * b.least - 1) : b.chunk(n), b.threads));
    }
  }
  m.total += std::max(most, checked_product(m.own_scratch, d.threads()));
  return m;
}

}  // namespace offramp

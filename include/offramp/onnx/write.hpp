/// @file write.hpp
/// ONNX out: a Graph to the bytes of a file.
#pragma once

#include <cstddef>
#include <fstream>
#include <memory>
#include <protozero/pbf_writer.hpp>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "offramp/graph/graph.hpp"
#include "offramp/onnx/onnx.hpp"

namespace offramp::onnx {

namespace detail {

using protozero::pbf_writer;

inline void write_tensor(pbf_writer& parent, protozero::pbf_tag_type tag, const Tensor& t, const std::string& name) {
  pbf_writer w(parent, tag);
  w.add_packed_int64(1, t.shape().begin(), t.shape().end());
  w.add_int32(2, static_cast<std::int32_t>(t.type()));
  if (!name.empty()) w.add_string(8, name);
  w.add_bytes(9, static_cast<const char*>(t.data()), t.bytes());
}

inline void write_value_info(pbf_writer& parent, protozero::pbf_tag_type tag, const Value& v) {
  pbf_writer w(parent, tag);
  w.add_string(1, v.name);
  if (v.type == DType::none) return;
  pbf_writer type(w, 2);
  pbf_writer tensor(type, 1);
  tensor.add_int32(1, static_cast<std::int32_t>(v.type));
  if (!v.has_shape) return;
  pbf_writer shape(tensor, 2);
  for (std::size_t i = 0; i < v.sizes.size(); ++i) {
    const bool labelled = i < v.labels.size() && !v.labels[i].empty();
    if (v.sizes[i] == dynamic && !labelled) {
      shape.add_message(1, "", 0);  // an open axis; a writer would leave an empty message out
      continue;
    }
    pbf_writer dim(shape, 1);
    if (v.sizes[i] != dynamic) {
      dim.add_int64(1, v.sizes[i]);
    } else {
      dim.add_string(2, v.labels[i]);
    }
  }
}

inline void write_graph(pbf_writer& w, const Graph& g);

inline void write_attribute(pbf_writer& parent, const Attribute& a) {
  pbf_writer w(parent, 5);
  w.add_string(1, a.name);
  if (const auto* v = std::get_if<float>(&a.value)) {
    w.add_float(2, *v);
    w.add_int32(20, 1);
  } else if (const auto* n = std::get_if<Index>(&a.value)) {
    w.add_int64(3, *n);
    w.add_int32(20, 2);
  } else if (const auto* s = std::get_if<std::string>(&a.value)) {
    w.add_bytes(4, *s);
    w.add_int32(20, 3);
  } else if (const auto* t = std::get_if<Tensor>(&a.value)) {
    write_tensor(w, 5, *t, "");
    w.add_int32(20, 4);
  } else if (const auto* g = std::get_if<std::shared_ptr<Graph>>(&a.value)) {
    {
      pbf_writer sub(w, 6);
      write_graph(sub, **g);
    }
    w.add_int32(20, 5);
  } else if (const auto* fs = std::get_if<std::vector<float>>(&a.value)) {
    w.add_packed_float(7, fs->begin(), fs->end());
    w.add_int32(20, 6);
  } else if (const auto* is = std::get_if<std::vector<Index>>(&a.value)) {
    w.add_packed_int64(8, is->begin(), is->end());
    w.add_int32(20, 7);
  } else if (const auto* ss = std::get_if<std::vector<std::string>>(&a.value)) {
    for (const std::string& x : *ss) w.add_bytes(9, x);
    w.add_int32(20, 8);
  }
}

inline void write_graph(pbf_writer& w, const Graph& g) {
  const auto name = [&](ValueId v) { return v == no_value ? std::string() : g[v].name; };
  std::set<ValueId> needed(g.outputs.begin(), g.outputs.end());
  for (const Node& n : g.nodes) {
    each_read(n, [&](ValueId v) { needed.insert(v); });
  }
  for (const Node& n : g.nodes) {
    pbf_writer node(w, 1);
    for (const ValueId v : n.inputs) node.add_string(1, name(v));
    for (const ValueId v : n.outputs) node.add_string(2, name(v));
    if (!n.name.empty()) node.add_string(3, n.name);
    node.add_string(4, n.op);
    for (const Attribute& a : n.attributes) write_attribute(node, a);
    if (!n.domain.empty()) node.add_string(7, n.domain);
  }
  w.add_string(2, g.name.empty() ? "network" : g.name);
  for (const ValueId v : needed) {
    if (g.is_constant(v)) write_tensor(w, 5, g[v].constant, g[v].name);
  }
  for (const ValueId v : g.inputs) write_value_info(w, 11, g[v]);
  for (const ValueId v : g.outputs) write_value_info(w, 12, g[v]);
}

inline void collect_domains(const Graph& g, std::set<std::string>& domains) {
  for (const Node& n : g.nodes) {
    if (!n.domain.empty() && n.domain != "ai.onnx") domains.insert(n.domain);
    for (const Attribute& a : n.attributes) {
      if (const auto* sub = std::get_if<std::shared_ptr<Graph>>(&a.value); sub && *sub) collect_domains(**sub, domains);
    }
  }
}

}  // namespace detail

#if OFFRAMP_HAS_DEFINITIONS
OFFRAMP_SEPARABLE std::string write(const Graph& g) {
  std::string bytes;
  protozero::pbf_writer w(bytes);
  w.add_int64(1, g.opset >= 21 ? 10 : 8);
  w.add_string(2, "offramp");
  {
    protozero::pbf_writer graph(w, 7);
    detail::write_graph(graph, g);
  }
  {
    protozero::pbf_writer opset(w, 8);
    opset.add_string(1, "");
    opset.add_int64(2, g.opset);
  }
  std::set<std::string> domains;
  detail::collect_domains(g, domains);
  for (const std::string& domain : domains) {
    protozero::pbf_writer opset(w, 8);
    opset.add_string(1, domain);
    opset.add_int64(2, 1);
  }
  for (const auto& [key, value] : g.metadata) {
    protozero::pbf_writer entry(w, 14);
    entry.add_string(1, key);
    entry.add_string(2, value);
  }
  return bytes;
}

OFFRAMP_SEPARABLE void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream f(path, std::ios::binary);
  f.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  f.close();
  if (!f) raise(Error("the file cannot be written", "", "", path));
}
#endif  // OFFRAMP_HAS_DEFINITIONS

}  // namespace offramp::onnx

/// @file read.hpp
/// ONNX in: bytes of a file to a Graph.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <protozero/pbf_reader.hpp>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "offramp/core/config.hpp"
#include "offramp/graph/graph.hpp"
#include "offramp/layer/element.hpp"
#include "offramp/onnx/onnx.hpp"

namespace offramp::onnx {

/// Newest opset whose meaning is known; a newer file is refused rather than guessed at.
inline constexpr Index newest_opset = 21;

namespace detail {

using protozero::pbf_reader;
using protozero::pbf_wire_type;

/// A field is read only as what it is: protozero asserts that, and a damaged file must not reach an assertion.
inline void expect(const pbf_reader& r, pbf_wire_type type) {
  OFFRAMP_REQUIRE(r.has_wire_type(type),
                  "the file is damaged: field " + std::to_string(r.tag()) + " has another type than ONNX gives it");
}
inline protozero::data_view take_bytes(pbf_reader& r) {
  expect(r, pbf_wire_type::length_delimited);
  return r.get_view();
}
inline pbf_reader take_message(pbf_reader& r) {
  return pbf_reader(take_bytes(r));
}
inline std::string text(pbf_reader& r) {
  const auto v = take_bytes(r);
  return {v.data(), v.size()};
}
inline Index take_integer(pbf_reader& r) {
  expect(r, pbf_wire_type::varint);
  return r.get_int64();
}
inline float take_real(pbf_reader& r) {
  expect(r, pbf_wire_type::fixed32);
  return r.get_float();
}

/// A repeated number, packed or not.
template <class T, class One, class Packed>
void read_numbers(pbf_reader& r, std::vector<T>& to, One&& one, Packed&& packed) {
  if (r.wire_type() == pbf_wire_type::length_delimited) {
    for (const auto v : packed(r)) to.push_back(static_cast<T>(v));
  } else {
    to.push_back(static_cast<T>(one(r)));
  }
}

inline void read_integers(pbf_reader& r, std::vector<Index>& to) {
  read_numbers(
      r, to, [](pbf_reader& x) { return take_integer(x); }, [](pbf_reader& x) { return x.get_packed_int64(); });
}
inline void read_floats(pbf_reader& r, std::vector<float>& to) {
  read_numbers(
      r, to, [](pbf_reader& x) { return take_real(x); }, [](pbf_reader& x) { return x.get_packed_float(); });
}

/// What a reader may take: memory, and the bytes themselves.
struct Reading {
  const Limits& limits;
  bool takes = false;  ///< memory of the file may be given back once it is read
};

/// TensorProto; its name goes to `name`.
OFFRAMP_COLD inline Tensor read_tensor(pbf_reader r, std::string& name, const Reading& reading) {
  std::vector<Index> dims, integers;
  std::vector<float> floats;
  std::vector<double> doubles;
  std::vector<std::uint64_t> naturals;
  protozero::data_view raw;
  bool has_raw = false, external = false;
  Index type = 0;
  while (r.next()) {
    switch (r.tag()) {
      case 1:
        read_integers(r, dims);
        break;
      case 2:
        type = take_integer(r);
        break;
      case 4:
        read_floats(r, floats);
        break;
      case 5:
        read_numbers(
            r, integers, [](pbf_reader& x) { return static_cast<std::int32_t>(take_integer(x)); },
            [](pbf_reader& x) { return x.get_packed_int32(); });
        break;
      case 7:
        read_integers(r, integers);
        break;
      case 8:
        name = text(r);
        break;
      case 9:
        raw = take_bytes(r), has_raw = true;
        break;
      case 10:
        read_numbers(
            r, doubles,
            [](pbf_reader& x) {
              expect(x, pbf_wire_type::fixed64);
              return x.get_double();
            },
            [](pbf_reader& x) { return x.get_packed_double(); });
        break;
      case 11:
        read_numbers(
            r, naturals, [](pbf_reader& x) { return static_cast<std::uint64_t>(take_integer(x)); },
            [](pbf_reader& x) { return x.get_packed_uint64(); });
        break;
      case 14:
        external = take_integer(r) != 0;
        break;
      default:
        r.skip();
    }
  }
  const std::string what = "tensor '" + name + "'";
  OFFRAMP_REQUIRE(!external, what + " keeps its data in another file, which is not supported");
  OFFRAMP_REQUIRE(type != 8, what + " holds strings, which are not supported");
  const auto dtype = type > 0 && type < 256 ? static_cast<DType>(type) : DType::none;
  OFFRAMP_REQUIRE(size_of(dtype) > 0, what + " has the unsupported element type " + std::to_string(type));
  OFFRAMP_REQUIRE(dims.size() <= Shape::max_rank, what + " has more than 8 axes");
  const Shape shape{std::span<const Index>(dims)};
  const Index count = shape.checked_count();
  const Index bytes = checked_product(count, static_cast<Index>(size_of(dtype)));
  // The data must be there before memory is taken for it.
  const auto found = has_raw ? static_cast<Index>(raw.size())
                             : static_cast<Index>(integers.size() + floats.size() + doubles.size() + naturals.size());
  OFFRAMP_REQUIRE(found == (has_raw ? bytes : count),
                  what + " of shape " + shape.text() + " and type " + std::string(name_of(dtype)) + ": expected " +
                      std::to_string(has_raw ? bytes : count) + (has_raw ? " bytes" : " elements") + ", found " +
                      std::to_string(found));
  if (has_raw) {
    Tensor t = Tensor::uninitialized(dtype, shape, reading.limits.tensor_bytes);
    if (bytes > 0 && reading.takes) {  // then the bytes are the caller's to give away
      move_bytes(t.mutable_data(), reinterpret_cast<std::byte*>(const_cast<char*>(raw.data())), raw.size());
    } else if (bytes > 0) {
      std::memcpy(t.mutable_data(), raw.data(), raw.size());
    }
    return t;
  }
  Tensor t(dtype, shape, reading.limits.tensor_bytes);
  const TensorView v = t.view();
  for (Index i = 0; i < count; ++i) {
    const auto u = static_cast<std::size_t>(i);
    if (!floats.empty()) {
      put_real(v, i, static_cast<double>(floats[u]));
    } else if (!doubles.empty()) {
      put_real(v, i, doubles[u]);
    } else if (!naturals.empty()) {
      put_integer(v, i, static_cast<std::int64_t>(naturals[u]));
    } else if (dtype == DType::f16 || dtype == DType::bf16) {
      v.as<std::uint16_t>()[i] = static_cast<std::uint16_t>(integers[u]);
    } else {
      put_integer(v, i, integers[u]);
    }
  }
  return t;
}

/// ValueInfoProto: name, element type and shape.
OFFRAMP_COLD inline Value read_value_info(pbf_reader r) {
  Value v;
  while (r.next()) {
    if (r.tag() == 1) {
      v.name = text(r);
    } else if (r.tag() == 2) {
      pbf_reader type = take_message(r);
      while (type.next()) {
        if (type.tag() != 1) {
          type.skip();  // sequences, maps and optionals keep the type `none`
          continue;
        }
        pbf_reader tensor = take_message(type);
        while (tensor.next()) {
          if (tensor.tag() == 1) {
            const auto t = take_integer(tensor);
            v.type = t > 0 && t < 256 && size_of(static_cast<DType>(t)) > 0 ? static_cast<DType>(t) : DType::none;
          } else if (tensor.tag() == 2) {
            v.has_shape = true;
            pbf_reader shape = take_message(tensor);
            while (shape.next(1)) {
              pbf_reader dim = take_message(shape);
              Index size = dynamic;
              std::string label;
              while (dim.next()) {
                if (dim.tag() == 1)
                  size = take_integer(dim);
                else if (dim.tag() == 2)
                  label = text(dim);
                else
                  dim.skip();
              }
              OFFRAMP_REQUIRE(v.sizes.size() < Shape::max_rank, "'" + v.name + "' has more than 8 axes");
              v.sizes.push_back(size < 0 ? dynamic : size);
              v.labels.push_back(std::move(label));
            }
          } else {
            tensor.skip();
          }
        }
      }
    } else {
      r.skip();
    }
  }
  return v;
}

/// Names of values, with the graph around for subgraphs.
struct Scope {
  Graph& graph;
  Scope* outer = nullptr;
  std::map<std::string, ValueId, std::less<>> names{};

  /// The value called `name` here or, captured, further out; -1 where there is none.
  ValueId find(const std::string& name) {
    if (const auto i = names.find(name); i != names.end()) return i->second;
    if (!outer) return no_value;
    const ValueId from = outer->find(name);
    if (from == no_value) return no_value;
    const ValueId v = graph.add_value(name);
    graph.captures.emplace_back(from, v);
    return names[name] = v;
  }
  ValueId define(const std::string& name) {
    OFFRAMP_REQUIRE(!names.contains(name), "value '" + name + "' is defined twice");
    return names[name] = graph.add_value(name);
  }
};

inline Graph read_graph(pbf_reader r, Index opset, Scope* outer, const Reading& reading, int depth);

OFFRAMP_COLD inline Attribute read_attribute(pbf_reader r, Index opset, Scope& scope, const Reading& reading,
                                             int depth) {
  Attribute a;
  Index type = 0;
  Index integer = 0;
  float real = 0;
  std::string string;
  std::vector<Index> integers;
  std::vector<float> reals;
  std::vector<std::string> strings;
  Tensor tensor;
  std::shared_ptr<Graph> graph;
  protozero::data_view graph_bytes;
  bool has_graph = false, has_tensor = false, seen[10] = {};
  while (r.next()) {
    const auto tag = r.tag();
    if (tag < 10) seen[tag] = true;
    switch (tag) {
      case 1:
        a.name = text(r);
        break;
      case 2:
        real = take_real(r);
        break;
      case 3:
        integer = take_integer(r);
        break;
      case 4:
        string = text(r);
        break;
      case 5: {
        std::string ignored;
        tensor = read_tensor(take_message(r), ignored, reading);
        has_tensor = true;
        break;
      }
      case 6:
        graph_bytes = take_bytes(r), has_graph = true;
        break;
      case 7:
        read_floats(r, reals);
        break;
      case 8:
        read_integers(r, integers);
        break;
      case 9:
        strings.push_back(text(r));
        break;
      case 20:
        type = take_integer(r);
        break;
      default:
        r.skip();
    }
  }
  if (has_graph)
    graph = std::make_shared<Graph>(read_graph(pbf_reader(graph_bytes), opset, &scope, reading, depth + 1));
  if (type == 0) {  // IR version 1 leaves the type out
    type = seen[2]      ? 1
           : seen[3]    ? 2
           : seen[4]    ? 3
           : has_tensor ? 4
           : has_graph  ? 5
           : seen[7]    ? 6
           : seen[8]    ? 7
           : seen[9]    ? 8
                        : 0;
  }
  switch (type) {
    case 1:
      a.value = real;
      break;
    case 2:
      a.value = integer;
      break;
    case 3:
      a.value = std::move(string);
      break;
    case 4:
      a.value = std::move(tensor);
      break;
    case 5:
      a.value = std::move(graph);
      break;
    case 6:
      a.value = std::move(reals);
      break;
    case 7:
      a.value = std::move(integers);
      break;
    case 8:
      a.value = std::move(strings);
      break;
    default:
      break;
  }
  return a;
}

/// A Constant node's value; raises an Error for one of an unsupported kind.
OFFRAMP_COLD inline Tensor constant_of(const Node& n) {
  if (const auto* t = n.get<Tensor>("value")) return *t;
  if (const auto* v = n.get<float>("value_float")) return Tensor::of<float>(Shape{}, {v, 1});
  if (const auto* v = n.get<Index>("value_int")) return Tensor::of<Index>(Shape{}, {v, 1});
  if (const auto* v = n.get<std::vector<float>>("value_floats"))
    return Tensor::of<float>({static_cast<Index>(v->size())}, *v);
  if (const auto* v = n.get<std::vector<Index>>("value_ints"))
    return Tensor::of<Index>({static_cast<Index>(v->size())}, *v);
  raise(Error("the constant is of an unsupported kind", n.name, n.op, ""));
}

struct RawNode {
  Node node;
  std::vector<std::string> inputs, outputs;
  std::vector<protozero::data_view> attributes;
};

OFFRAMP_COLD inline RawNode read_node(pbf_reader r) {
  RawNode n;
  while (r.next()) {
    switch (r.tag()) {
      case 1:
        n.inputs.push_back(text(r));
        break;
      case 2:
        n.outputs.push_back(text(r));
        break;
      case 3:
        n.node.name = text(r);
        break;
      case 4:
        n.node.op = text(r);
        break;
      case 5:
        n.attributes.push_back(take_bytes(r));
        break;
      case 7:
        n.node.domain = text(r);
        break;
      default:
        r.skip();
    }
  }
  return n;
}

OFFRAMP_COLD inline Graph read_graph(pbf_reader r, Index opset, Scope* outer, const Reading& reading, int depth) {
  OFFRAMP_REQUIRE(depth <= reading.limits.subgraph_depth, "subgraphs are nested too deeply");
  Graph g;
  g.opset = opset;
  Scope scope{g, outer};
  std::vector<Value> inputs, outputs;
  std::vector<RawNode> nodes;
  while (r.next()) {
    switch (r.tag()) {
      case 1:
        nodes.push_back(read_node(take_message(r)));
        break;
      case 2:
        g.name = text(r);
        break;
      case 5: {
        std::string name;
        Tensor t = read_tensor(take_message(r), name, reading);
        g[scope.define(name)].constant = std::move(t);
        break;
      }
      case 11:
        inputs.push_back(read_value_info(take_message(r)));
        break;
      case 12:
        outputs.push_back(read_value_info(take_message(r)));
        break;
      case 15:
        raise("sparse constants are not supported");
      default:
        r.skip();
    }
  }
  for (Value& v : inputs) {
    if (scope.names.contains(v.name)) continue;  // before IR version 4 constants are inputs too
    const ValueId id = scope.define(v.name);
    g[id] = std::move(v);
    g.inputs.push_back(id);
  }
  // Nodes may read what a later node computes: all outputs are known before any input is looked up.
  for (RawNode& n : nodes) {
    for (const std::string& name : n.outputs) n.node.outputs.push_back(name.empty() ? no_value : scope.define(name));
  }
  for (RawNode& n : nodes) {
    for (const std::string& name : n.inputs) {
      const ValueId v = name.empty() ? no_value : scope.find(name);
      if (v == no_value && !name.empty())
        raise(Error("input '" + name + "' is defined nowhere", n.node.name, n.node.op, ""));
      n.node.inputs.push_back(v);
    }
    while (!n.node.inputs.empty() && n.node.inputs.back() == no_value) n.node.inputs.pop_back();
    for (const auto bytes : n.attributes) {
#if OFFRAMP_EXCEPTIONS
      try {
        n.node.attributes.push_back(read_attribute(pbf_reader(bytes), opset, scope, reading, depth));
      } catch (const Error& e) {
        throw e.at_node(n.node.name, n.node.op);
      }
#else
      n.node.attributes.push_back(read_attribute(pbf_reader(bytes), opset, scope, reading, depth));
#endif
    }
    const bool standard = n.node.domain.empty() || n.node.domain == "ai.onnx";
    if (standard && n.node.op == "Constant" && n.node.outputs.size() == 1 && n.node.outputs[0] != no_value) {
      g[n.node.outputs[0]].constant = constant_of(n.node);
    } else {
      g.nodes.push_back(std::move(n.node));
    }
  }
  for (Value& v : outputs) {
    const ValueId id = scope.find(v.name);
    OFFRAMP_REQUIRE(id != no_value, "output '" + v.name + "' is defined nowhere");
    g.outputs.push_back(id);
    Value& own = g[id];
    if (own.type == DType::none) own.type = v.type;
    if (!own.has_shape) own.has_shape = v.has_shape, own.sizes = std::move(v.sizes), own.labels = std::move(v.labels);
  }
  OFFRAMP_REQUIRE(!g.outputs.empty(), "the graph has no output");
  g.sort();
  return g;
}

OFFRAMP_COLD inline Graph read_model(pbf_reader r, const Reading& reading) {
  protozero::data_view graph_bytes;
  bool has_graph = false;
  Index opset = 0;
  std::map<std::string, std::string> metadata;
  while (r.next()) {
    switch (r.tag()) {
      case 7:
        graph_bytes = take_bytes(r), has_graph = true;
        break;
      case 8: {
        pbf_reader o = take_message(r);
        std::string domain;
        Index version = 0;
        while (o.next()) {
          if (o.tag() == 1)
            domain = text(o);
          else if (o.tag() == 2)
            version = take_integer(o);
          else
            o.skip();
        }
        if (domain.empty() || domain == "ai.onnx") opset = version;
        break;
      }
      case 14: {
        pbf_reader e = take_message(r);
        std::string key, value;
        while (e.next()) {
          if (e.tag() == 1)
            key = text(e);
          else if (e.tag() == 2)
            value = text(e);
          else
            e.skip();
        }
        metadata[std::move(key)] = std::move(value);
        break;
      }
      default:
        r.skip();
    }
  }
  OFFRAMP_REQUIRE(has_graph, "this is no ONNX file: it holds no graph");
  if (opset == 0) opset = 1;
  OFFRAMP_REQUIRE(
      opset > 0 && opset <= newest_opset,
      "opset " + std::to_string(opset) + " is not known; the newest that is known is " + std::to_string(newest_opset));
  Graph g = read_graph(pbf_reader(graph_bytes), opset, nullptr, reading, 0);
  g.metadata = std::move(metadata);
  return g;
}

OFFRAMP_COLD inline Graph read(std::span<const std::byte> file, const Reading& reading) {
  const protozero::data_view view(reinterpret_cast<const char*>(file.data()), file.size());
  try {
    return read_model(protozero::pbf_reader(view), reading);
  } catch (const protozero::exception& e) {
    throw Error(std::string("the file is damaged: ") + e.what());
  } catch (const std::bad_alloc&) {
    throw Error("out of memory");
  }
}

}  // namespace detail

#if OFFRAMP_HAS_DEFINITIONS
OFFRAMP_SEPARABLE OFFRAMP_COLD Graph read(std::span<const std::byte> file, const Limits& limits) {
  return detail::read(file, {limits});
}

OFFRAMP_SEPARABLE OFFRAMP_COLD Graph read(std::vector<std::byte>&& file, const Limits& limits) {
  std::vector<std::byte> taken = std::move(file);
  return detail::read(taken, {limits, true});
}

OFFRAMP_SEPARABLE OFFRAMP_COLD std::vector<std::byte> read_file(const std::string& path, Index limit) {
  std::ifstream f(path, std::ios::binary | std::ios::ate);
  if (!f) raise(Error("the file cannot be opened", "", "", path));
  const auto size = static_cast<Index>(f.tellg());
  if (size < 0 || size > limit)
    raise(Error("the file cannot be read, or is larger than " + std::to_string(limit) + " bytes", "", "", path));
  std::vector<std::byte> bytes(static_cast<std::size_t>(size));
  f.seekg(0);
  f.read(reinterpret_cast<char*>(bytes.data()), size);
  if (!f) raise(Error("the file cannot be read", "", "", path));
  return bytes;
}
#endif  // OFFRAMP_HAS_DEFINITIONS

}  // namespace offramp::onnx

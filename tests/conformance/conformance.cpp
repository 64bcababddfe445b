// Runs ONNX's own test data: conformance FOLDER [--markdown FILE] [--verbose]
// A case passes, is refused with an error that names the operator, or fails. Failures, crashes and refusals of cases
// whose operators are all in the table (but for the known reasons below) make the program fail.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "offramp/offramp.hpp"
#include "offramp/onnx/read.hpp"

namespace fs = std::filesystem;
using namespace offramp;

namespace {

Tensor read_tensor_file(const fs::path& p) {
  const auto bytes = onnx::read_file(p.string());
  std::string name;
  const Limits limits;
  return onnx::detail::read_tensor(protozero::pbf_reader(reinterpret_cast<const char*>(bytes.data()), bytes.size()),
                                   name, {limits});
}

// The data set keeps bfloat16 as bits in uint16.
Tensor as_bf16(const Tensor& t) {
  if (t.type() != DType::u16) return t;
  Tensor bits(DType::bf16, t.shape());
  std::memcpy(bits.mutable_data(), t.data(), t.bytes());
  return bits;
}

// ONNX's own rule: relative 1e-3, absolute 1e-7; and what rounding of half precision allows.
bool close(const Tensor& a, Tensor b, std::string& why) {
  if (a.type() == DType::bf16) b = as_bf16(b);
  if (a.type() != b.type() || !(a.shape() == b.shape())) {
    why = "expected " + std::string(name_of(b.type())) + b.shape().text() + ", found " +
          std::string(name_of(a.type())) + a.shape().text();
    return false;
  }
  for (Index i = 0; i < a.count(); ++i) {
    const double x = real_at(a.view(), i), y = real_at(b.view(), i);
    if (x == y || (x != x && y != y)) continue;
    // The data set cuts float to bfloat16 off where the standard since rounds: one unit in the last place.
    const double relative = a.type() == DType::bf16 ? 1.0 / 128 : 1e-3;
    const double tolerance = is_float(a.type()) ? 1e-7 + relative * std::fabs(y) : 0;
    if (!(std::fabs(x - y) <= tolerance)) {
      why = "element " + std::to_string(i) + ": expected " + std::to_string(y) + ", found " + std::to_string(x);
      return false;
    }
  }
  return true;
}

enum class Result { pass, refused, fail };

// Expected values that later releases of the data set corrected; the library does what those, PyTorch and ONNX Runtime
// do: the output's real size counts, not the scaled one.
const std::set<std::string> corrected_later{"test_resize_downsample_scales_cubic_align_corners",
                                            "test_resize_downsample_scales_linear_align_corners"};

struct Case {
  Result result = Result::fail;
  std::string why;
  std::set<std::string> ops;
  bool planned = false;
};

void collect(const Graph& g, std::set<std::string>& ops) {
  for (const Node& n : g.nodes) {
    ops.insert(n.op);
    for (const Attribute& a : n.attributes) {
      if (const auto* sub = std::get_if<std::shared_ptr<Graph>>(&a.value); sub && *sub) collect(**sub, ops);
    }
  }
}

Case run_case(const fs::path& folder) {
  Case c;
  try {
    const auto bytes = onnx::read_file((folder / "model.onnx").string());
    const Graph graph = onnx::read(bytes);
    collect(graph, c.ops);
    const Model model = load_onnx(std::span<const std::byte>(bytes));
    ModelOptions options;
    options.keep_graph = false;
    const Model prepared = load_onnx(std::span<const std::byte>(bytes), options);
    c.planned = prepared.has_plan();
    for (const auto& entry : fs::directory_iterator(folder)) {
      if (!entry.is_directory()) continue;
      const fs::path data = entry.path();
      std::vector<Tensor> in, expected;
      for (std::size_t i = 0; fs::exists(data / ("input_" + std::to_string(i) + ".pb")); ++i)
        in.push_back(read_tensor_file(data / ("input_" + std::to_string(i) + ".pb")));
      for (std::size_t i = 0; fs::exists(data / ("output_" + std::to_string(i) + ".pb")); ++i)
        expected.push_back(read_tensor_file(data / ("output_" + std::to_string(i) + ".pb")));
      for (std::size_t i = 0; i < in.size() && i < model.inputs().size(); ++i) {
        if (model.inputs()[i].type == DType::bf16) in[i] = as_bf16(in[i]);
      }
      // Some inputs of the data set are not of the shape that its model declares; those cases run node by node alone.
      bool declared = true;
      for (std::size_t i = 0; i < in.size() && i < model.inputs().size(); ++i) {
        const auto& sizes = model.inputs()[i].sizes;
        declared = declared && in[i].shape().rank() == static_cast<int>(sizes.size());
        for (std::size_t a = 0; declared && a < sizes.size(); ++a)
          declared = sizes[a] == dynamic || sizes[a] == in[i].shape()[static_cast<int>(a)];
      }
      c.planned = c.planned && declared;
      // Both ways through the library: node by node, and prepared, there without the weights that were packed.
      std::vector<std::vector<Tensor>> ways{model.run_graph(in)};
      if (c.planned) ways.push_back(prepared.run(in));
      for (const auto& out : ways) {
        if (out.size() != expected.size()) {
          c.why = "expected " + std::to_string(expected.size()) + " outputs, found " + std::to_string(out.size());
          return c;
        }
        for (std::size_t i = 0; i < out.size(); ++i) {
          if (!close(out[i], expected[i], c.why)) {
            c.why = std::string(&out == &ways[0] ? "node by node" : "prepared") + ", output " + std::to_string(i) +
                    ": " + c.why;
            return c;
          }
        }
        // What is written and read again gives the same.
        const std::string again = save_onnx(model);
        if (&out == &ways[0]) {
          const auto copy = load_onnx(std::as_bytes(std::span(again))).run_graph(in);
          for (std::size_t i = 0; i < out.size(); ++i) {
            if (copy[i].bytes() != out[i].bytes() ||
                (out[i].bytes() > 0 && std::memcmp(copy[i].data(), out[i].data(), out[i].bytes()) != 0)) {
              c.why = "saved and loaded again, output " + std::to_string(i) + " differs";
              return c;
            }
          }
        }
      }
    }
    c.result = Result::pass;
  } catch (const Error& e) {
    c.result = Result::refused;
    c.why = e.what();
  }
  return c;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const fs::path root = argv[1];
  std::string markdown;
  bool verbose = false;
  for (int i = 2; i < argc; ++i) {
    if (std::strcmp(argv[i], "--markdown") == 0 && i + 1 < argc) markdown = argv[++i];
    if (std::strcmp(argv[i], "--verbose") == 0) verbose = true;
  }
  std::map<std::string, std::map<Result, int>> counts;
  std::map<std::string, std::pair<int, int>> by_operator;  // passed, of
  std::string refusals;
  bool ok = true;
  int planned = 0;
  for (const char* suite : {"node", "pytorch-converted", "pytorch-operator", "simple"}) {
    std::vector<fs::path> cases;
    for (const auto& e : fs::directory_iterator(root / suite)) cases.push_back(e.path());
    std::sort(cases.begin(), cases.end());
    for (const fs::path& p : cases) {
      const Case c = run_case(p);
      ++counts[suite][c.result];
      planned += c.planned && c.result == Result::pass;
      const std::string name = p.filename().string();
      for (const std::string& op : c.ops) {
        auto& [passed, all] = by_operator[op];
        passed += c.result == Result::pass;
        ++all;
      }
      if (c.result == Result::fail && corrected_later.contains(name)) {
        std::printf("differs %s/%s: %s\n", suite, name.c_str(), c.why.c_str());
        refusals += "- `" + std::string(suite) + "/" + name +
                    "` differs: its expected values were corrected in later releases\n";
      } else if (c.result == Result::fail) {
        std::printf("FAIL    %s/%s: %s\n", suite, name.c_str(), c.why.c_str());
        ok = false;
      }
      if (c.result == Result::refused) {
        if (verbose) std::printf("refused %s/%s: %s\n", suite, name.c_str(), c.why.c_str());
        refusals += "- `" + std::string(suite) + "/" + name + "`: " + c.why + "\n";
        // Refusing is right for unknown operators, strings, sequences, optionals, and dropping at random.
        const bool known = std::all_of(c.ops.begin(), c.ops.end(),
                                       [](const std::string& op) { return op == "If" || find_operator(op); });
        const bool out_of_scope = c.why.find("strings") != std::string::npos ||
                                  c.why.find("at random") != std::string::npos || name.ends_with("_opt") ||
                                  name.ends_with("_seq") || name.ends_with("_sequence");
        const bool must = std::string_view(suite).starts_with("pytorch") || (known && !c.ops.empty() && !out_of_scope);
        if (must) std::printf("FAIL    %s/%s is refused: %s\n", suite, name.c_str(), c.why.c_str());
        ok = ok && !must;
      }
    }
  }
  std::string table = "| suite | cases | passed | refused | failed |\n|---|---|---|---|---|\n";
  for (auto& [suite, n] : counts) {
    const int all = n[Result::pass] + n[Result::refused] + n[Result::fail];
    table += "| " + suite + " | " + std::to_string(all) + " | " + std::to_string(n[Result::pass]) + " | " +
             std::to_string(n[Result::refused]) + " | " + std::to_string(n[Result::fail]) + " |\n";
  }
  std::printf("%s\n%d of the passed cases also ran prepared\n", table.c_str(), planned);
  ok = ok && counts["node"][Result::pass] >= 600;
  if (!markdown.empty()) {
    std::ofstream f(markdown);
    f << "# Operators\n\nGenerated by `conformance DATA --markdown docs/operators.md`, where DATA is the folder of "
         "Debian's package `libonnx-testdata`; do not edit.\n\n"
         "Every operator that the loader knows, opsets 1 to 21, with the nominal FLOPs that the counter charges "
         "(`docs/flops.md`) and the cases of ONNX's own test data that use it. Elements are float32 unless a case says "
         "more; `Constant` and `If` are the graph's own.\n\n## Conformance\n\n"
      << table << "\nEvery passed case ran node by node, was saved and loaded again with bitwise equal outputs, and "
      << planned << " of them also ran through the prepared plan.\n";
    std::string group;
    std::vector<OperatorInfo> rows(operator_table().begin(), operator_table().end());
    std::stable_sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.group < b.group; });
    for (const OperatorInfo& r : rows) {
      if (r.group != group) {
        group = r.group;
        f << "\n## " << group << "\n\n| operator | nominal FLOPs | cases passed |\n|---|---|---|\n";
      }
      const auto [passed, all] = by_operator[std::string(r.name)];
      f << "| " << r.name << " | " << r.formula << " | "
        << (all > 0 ? std::to_string(passed) + " of " + std::to_string(all) : "-") << " |\n";
    }
    f << "\n## Refused cases\n\nEach with the error that a user sees.\n\n" << refusals;
  }
  return ok ? 0 : 1;
}

/// @file condition.hpp
/// A policy's decision at an exit as ONNX operators, for exits written as `If` nodes.
#pragma once

#include <cmath>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "offramp/graph/attach.hpp"
#include "offramp/policy/gate.hpp"
#include "offramp/policy/parse.hpp"

namespace offramp {

/// A policy that can be written as operators: a threshold, or one for each class, on the largest probability, or a
/// gate; of the exit alone, or of the geometric mean of the exits so far. With `last_ensemble` the last answer is that
/// mean.
struct WrittenPolicy {
  bool last_ensemble = false, of_ensemble = false, has_gate = false;
  Gate gate{{}, Thresholds(1.0f)};
  Thresholds thresholds{1.0f};

  /// Reads a policy's text; raises an Error where it is of another kind.
  static WrittenPolicy parse(const std::string& text) {
    WrittenPolicy p;
    std::string_view s = text;
    constexpr std::string_view last = "last-ensemble(", ensemble = "ensemble(", gate = "gate(",
                               plain = "max-probability:", per_class = "max-probability-per-class:";
    if (s.starts_with(last) && s.ends_with(')')) {
      p.last_ensemble = true;
      s = s.substr(last.size(), s.size() - last.size() - 1);
    }
    if (s.starts_with(ensemble) && s.ends_with(')')) {
      p.of_ensemble = true;
      s = s.substr(ensemble.size(), s.size() - ensemble.size() - 1);
    }
    if (s.starts_with(gate) && s.ends_with(')')) {
      p.has_gate = true;
      const auto parts = detail::split_parts(s.substr(gate.size(), s.size() - gate.size() - 1));
      for (std::size_t i = 0; i + 1 < parts.size(); ++i)
        p.gate.weights.push_back(detail::parse_numbers(parts[i], text));
      p.thresholds = Thresholds(detail::parse_numbers(parts.back(), text));
      return p;
    }
    if (s.starts_with(per_class)) {
      s.remove_prefix(per_class.size());
      const auto colon = s.find(':');
      OFFRAMP_REQUIRE(colon != std::string_view::npos, "policy '" + text + "' lacks its thresholds");
      p.thresholds = Thresholds::per_class(detail::parse_numbers(s.substr(colon + 1), text),
                                           static_cast<Index>(detail::parse_number(s.substr(0, colon), text)));
      return p;
    }
    OFFRAMP_REQUIRE(s.starts_with(plain),
                    "exits as `If` nodes take a threshold on the largest probability, a gate, or "
                    "an ensemble of these, found '" +
                        text + "'");
    p.thresholds = Thresholds(detail::parse_numbers(s.substr(plain.size()), text));
    return p;
  }

  /// The text of the same policy for these exits alone; the last of `numbers` is the network's own. The mean at the
  /// last exit is part of the operators and not of the text.
  std::string text_of(const std::vector<Index>& numbers, Index classes) const {
    std::vector<float> kept;
    Gate g{{}, Thresholds(1.0f)};
    for (std::size_t i = 0; i + 1 < numbers.size(); ++i) {
      for (Index c = 0; c < (thresholds.classes() > 0 ? classes : 1); ++c) kept.push_back(thresholds.at(numbers[i], c));
      if (has_gate) g.weights.push_back(gate.weights[static_cast<std::size_t>(numbers[i])]);
    }
    g.thresholds = Thresholds(kept);
    const std::string own = has_gate ? policy_text(g)
                            : thresholds.classes() > 0
                                ? policy_text("max-probability-per-class:" + std::to_string(classes), kept)
                                : policy_text("max-probability", kept);
    return of_ensemble ? policy_text_in("ensemble", own) : own;
  }

  bool looks_back() const noexcept { return of_ensemble || has_gate; }
  /// Whether the head of an exit must run.
  bool needs(Index exit, Index classes) const noexcept {
    for (Index c = 0; c < classes; ++c) {
      if (!std::isinf(thresholds.at(exit, c))) return true;
    }
    return false;
  }
};

namespace detail {

/// The geometric mean of what these scores say, each [N, classes], as logarithms of probabilities.
inline ValueId write_geometric_mean(NodeWriter& w, const std::vector<ValueId>& scores) {
  const Attribute last{"axis", Index{1}};
  std::vector<ValueId> logs;
  const ValueId least = w.constant("least", Shape{}, {std::log(1e-30f)});  // as take_geometric_mean
  for (const ValueId s : scores) logs.push_back(w.emit("Max", {w.emit("LogSoftmax", {s}, {last}), least}));
  return w.emit("LogSoftmax", {w.emit("Mean", logs)}, {last});
}

/// Emits the operators that decide at `exit`, for a single sample; returns a scalar boolean. `scores` are those of all
/// exits so far, this one last, each [1, classes].
inline ValueId write_condition(NodeWriter& w, const WrittenPolicy& policy, Index exit,
                               const std::vector<ValueId>& scores, Index classes) {
  const Attribute last{"axis", Index{1}};
  const auto number = [&](const char* name, float v) { return w.constant(name, Shape{}, {v}); };
  const auto over_classes = [&](const char* op, ValueId v) {  // [1, classes] to a scalar; opset 12 to 17
    const bool is_input = std::string_view(op) == "ReduceSum";
    if (!is_input) return w.emit(op, {v}, {{"axes", std::vector<Index>{0, 1}}, {"keepdims", Index{0}}});
    return w.reduce_sum(v);
  };
  const bool needs_logs = policy.has_gate || policy.of_ensemble;
  ValueId logs = needs_logs ? w.emit("LogSoftmax", {scores.back()}, {last}) : no_value;
  std::vector<ValueId> earlier;
  for (std::size_t i = 0; i + 1 < scores.size(); ++i) earlier.push_back(w.emit("LogSoftmax", {scores[i]}, {last}));
  if (policy.of_ensemble && !earlier.empty()) {
    std::vector<ValueId> all = earlier;
    all.push_back(logs);
    logs = w.emit("LogSoftmax", {w.emit("Mean", all)}, {last});
  }
  const ValueId p = needs_logs ? w.emit("Exp", {logs}) : w.emit("Softmax", {scores.back()}, {last});
  if (!policy.has_gate && policy.thresholds.classes() == 0) {  // of a batch, all samples must be sure
    const ValueId each = w.emit("ReduceMax", {p}, {{"axes", std::vector<Index>{1}}, {"keepdims", Index{0}}});
    return w.emit("GreaterOrEqual", {w.emit("ReduceMin", {each}, {{"keepdims", Index{0}}}),
                                     number("threshold", std::min(policy.thresholds.at(exit, 0), 2.0f))});
  }
  const ValueId top = over_classes("ReduceMax", p);
  const ValueId label = w.emit("ArgMax", {p}, {{"axis", Index{1}}, {"keepdims", Index{0}}});  // [1]
  ValueId confidence = top;
  if (policy.has_gate) {
    const std::vector<float>& weights = policy.gate.weights[static_cast<std::size_t>(exit)];
    const auto c = static_cast<std::size_t>(classes);
    constexpr std::size_t f = Gate::feature_count;
    const auto times = [&](ValueId v, std::size_t i) { return w.emit("Mul", {v, number("weight", weights[i])}); };
    const ValueId least = number("least", 1e-7f);
    const auto log_of = [&](ValueId v) { return w.emit("Log", {w.emit("Max", {v, least})}); };
    const ValueId two = w.integers("two", {2});
    const auto [values, places] = w.emit_two("TopK", {p, two}, {last});
    static_cast<void>(places);
    const ValueId second = w.emit("Squeeze", {w.emit("Gather", {values, w.integers("second", {1})}, {last})});
    const ValueId first_log = log_of(top);
    const ValueId rest = w.emit("Sub", {over_classes("ReduceSum", p), top});
    const ValueId odds = w.emit("Sub", {first_log, log_of(rest)});
    const ValueId ratio = w.emit("Sub", {first_log, log_of(second)});
    const ValueId entropy =
        w.emit("Div", {over_classes("ReduceSum", w.emit("Mul", {p, logs})),
                       number("scale", -std::log(static_cast<float>(std::max<Index>(2, classes))))});
    std::vector<ValueId> terms{number("bias", weights[0]), times(odds, 1), times(ratio, 2), times(entropy, 3)};
    if (earlier.empty()) {
      terms.push_back(number("no_earlier", 0.5f * weights[4]));
    } else {
      const ValueId floor = number("floor", 1e-4f);
      std::vector<ValueId> agreements, said;
      for (const ValueId e : earlier) {
        const ValueId own = w.emit("ArgMax", {e}, {{"axis", Index{1}}, {"keepdims", Index{0}}});
        agreements.push_back(w.emit("Cast", {w.emit("Equal", {own, label})}, {{"to", Index{1}}}));
        const ValueId of_label = w.emit("Gather", {w.emit("Exp", {e}), label}, {last});  // [1, 1]
        said.push_back(w.emit("Squeeze", {w.emit("Log", {w.emit("Max", {of_label, floor})})}));
      }
      terms.push_back(times(w.emit("Squeeze", {w.emit("Mean", agreements)}), 4));
      terms.push_back(times(w.emit("Mean", said), 5));
    }
    if (weights.size() > f) {
      const std::vector<float> offsets(weights.begin() + f, weights.begin() + static_cast<std::ptrdiff_t>(f + c));
      terms.push_back(w.emit("Squeeze", {w.emit("Gather", {w.constant("offsets", {classes}, offsets), label})}));
    }
    if (weights.size() > f + c) {
      const std::vector<float> means(weights.begin() + static_cast<std::ptrdiff_t>(f + c), weights.end());
      const ValueId mean = w.emit("Gather", {w.constant("means", {classes, classes}, means), label});  // [1, classes]
      const ValueId bounded = w.emit("Log", {w.emit("Max", {p, number("floor", 1e-4f)})});
      const ValueId d = w.emit("Sub", {bounded, mean});
      const ValueId mean_square =
          w.emit("ReduceMean", {w.emit("Mul", {d, d})}, {{"axes", std::vector<Index>{0, 1}}, {"keepdims", Index{0}}});
      terms.push_back(times(w.emit("Sqrt", {mean_square}), 6));
    }
    confidence = w.emit("Sigmoid", {w.emit("Sum", terms)});
  }
  ValueId threshold = no_value;
  if (policy.thresholds.classes() > 0) {
    std::vector<float> own;
    for (Index c = 0; c < classes; ++c) own.push_back(std::min(policy.thresholds.at(exit, c), 2.0f));
    threshold = w.emit("Squeeze", {w.emit("Gather", {w.constant("thresholds", {classes}, own), label})});
  } else {
    threshold = number("threshold", std::min(policy.thresholds.at(exit, 0), 2.0f));
  }
  return w.emit("GreaterOrEqual", {confidence, threshold});
}

}  // namespace detail

}  // namespace offramp

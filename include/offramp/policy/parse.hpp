/// @file parse.hpp
/// Policies as text: what the tool takes and what a file's metadata carries (key `offramp.policy`).
///
///     max-probability:0.9            one threshold for all exits
///     max-probability:0.9,0.8,inf    one for each early exit; inf never leaves there
///     entropy:0.3   margin:0.5   agreement:0.8   patience:2   flops:25e6   deadline:0.002 (seconds)
///     always   always:1   never
///     temperature(1.3,1.2,1;max-probability:0.9)   ensemble(max-probability:0.9)   ensemble(1,1,2;margin:0.4)
///     last-ensemble(max-probability:0.9)    at the last exit, the geometric mean of all answers
///     and(patience:1;max-probability:0.6)   or(a;b)   not(a)
///     max-probability-per-class:C:t,t,...    C thresholds for each early exit
///     gate(w,...;w,...;t,...)                a row of weights for each early exit, then thresholds
#pragma once

#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "offramp/core/config.hpp"
#include "offramp/core/error.hpp"
#include "offramp/policy/agreement.hpp"
#include "offramp/policy/any_policy.hpp"
#include "offramp/policy/budget.hpp"
#include "offramp/policy/combine.hpp"
#include "offramp/policy/constant.hpp"
#include "offramp/policy/deadline.hpp"
#include "offramp/policy/ensemble.hpp"
#include "offramp/policy/entropy.hpp"
#include "offramp/policy/gate.hpp"
#include "offramp/policy/last_ensemble.hpp"
#include "offramp/policy/margin.hpp"
#include "offramp/policy/max_probability.hpp"
#include "offramp/policy/patience.hpp"
#include "offramp/policy/route.hpp"
#include "offramp/policy/temperature.hpp"

namespace offramp {

namespace detail {

inline std::string_view trimmed(std::string_view s) noexcept {
  while (!s.empty() && s.front() == ' ') s.remove_prefix(1);
  while (!s.empty() && s.back() == ' ') s.remove_suffix(1);
  return s;
}

inline double parse_number(std::string_view s, std::string_view whole) {
  s = trimmed(s);
  if (s == "inf") return std::numeric_limits<double>::infinity();
  if (s == "-inf") return -std::numeric_limits<double>::infinity();
  double v = 0;
  const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), v);
  OFFRAMP_REQUIRE(error == std::errc() && end == s.data() + s.size() && std::isfinite(v),
                  "policy '" + std::string(whole) + "': '" + std::string(s) + "' is not a number");
  return v;
}

OFFRAMP_COLD inline std::vector<float> parse_numbers(std::string_view s, std::string_view whole) {
  std::vector<float> v;
  while (true) {
    const auto comma = s.find(',');
    v.push_back(static_cast<float>(parse_number(s.substr(0, comma), whole)));
    if (comma == std::string_view::npos) return v;
    s.remove_prefix(comma + 1);
  }
}

/// The parts of `s` between semicolons that stand in no parentheses.
inline std::vector<std::string_view> split_parts(std::string_view s) {
  std::vector<std::string_view> parts;
  std::size_t from = 0;
  int depth = 0;
  for (std::size_t i = 0; i < s.size(); ++i) {
    depth += s[i] == '(' ? 1 : s[i] == ')' ? -1 : 0;
    if (s[i] == ';' && depth == 0) {
      parts.push_back(s.substr(from, i - from));
      from = i + 1;
    }
  }
  parts.push_back(s.substr(from));
  return parts;
}

OFFRAMP_COLD inline AnyPolicy parse_policy(std::string_view s, int depth) {
  OFFRAMP_REQUIRE(depth < 16, "a policy is nested too deeply");
  s = trimmed(s);
  const std::string whole(s);
  const auto open = s.find('('), colon = s.find(':');
  if (open != std::string_view::npos && (colon == std::string_view::npos || open < colon)) {
    OFFRAMP_REQUIRE(s.back() == ')', "policy '" + whole + "' does not end in ')'");
    const std::string_view name = trimmed(s.substr(0, open));
    const auto parts = split_parts(s.substr(open + 1, s.size() - open - 2));
    const auto policy = [&](std::size_t i) { return parse_policy(parts[i], depth + 1); };
    if (name == "not" && parts.size() == 1) return Not<AnyPolicy>{policy(0)};
    if ((name == "and" || name == "or") && parts.size() >= 2) {
      AnyPolicy p = policy(0);
      for (std::size_t i = 1; i < parts.size(); ++i)
        p = name == "and" ? AnyPolicy(And<AnyPolicy, AnyPolicy>{p, policy(i)})
                          : AnyPolicy(Or<AnyPolicy, AnyPolicy>{p, policy(i)});
      return p;
    }
    if (name == "gate" && parts.size() >= 2) {
      Gate g{{}, Thresholds(parse_numbers(parts.back(), whole))};
      for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
        g.weights.push_back(parse_numbers(parts[i], whole));
        OFFRAMP_REQUIRE(g.weights.back().size() >= Gate::feature_count,
                        "policy '" + whole + "': a gate's row has at least 7 weights");
      }
      return g;
    }
    if (name == "last-ensemble" && parts.size() == 1) return LastEnsemble<AnyPolicy>{policy(0)};
    if (name == "ensemble" && parts.size() == 1) return Ensemble<AnyPolicy>{policy(0)};
    if (name == "ensemble" && parts.size() == 2) return Ensemble<AnyPolicy>{policy(1), parse_numbers(parts[0], whole)};
    if (name == "route" && parts.size() == 3 && depth == 0) {
      const double target = parse_number(parts[0], whole);
      OFFRAMP_REQUIRE(target >= 1 && target < 1e6 && target == std::floor(target),
                      "policy '" + whole + "': a route leads to the number of an exit");
      return Route<AnyPolicy>{{static_cast<Index>(target), parse_numbers(parts[1], whole)}, policy(2)};
    }
    if (name == "temperature" && parts.size() == 2)
      return Temperature<AnyPolicy>{parse_numbers(parts[0], whole), policy(1)};
    raise("policy '" + whole + "' is unknown");
  }
  const std::string_view name = s.substr(0, colon);
  const std::string_view rest = colon == std::string_view::npos ? std::string_view() : s.substr(colon + 1);
  if (name == "never" && rest.empty()) return Never{};
  if (name == "always") return Always{rest.empty() ? 0 : static_cast<Index>(parse_number(rest, whole))};
  OFFRAMP_REQUIRE(!rest.empty(), "policy '" + whole + "' is unknown or lacks its number");
  if (name == "max-probability") return MaxProbability{Thresholds(parse_numbers(rest, whole))};
  if (name == "entropy") return Entropy{Thresholds(parse_numbers(rest, whole))};
  if (name == "margin") return Margin{Thresholds(parse_numbers(rest, whole))};
  if (name == "agreement") return Agreement{Thresholds(parse_numbers(rest, whole))};
  if (name == "patience") return Patience{static_cast<Index>(std::min(1e9, parse_number(rest, whole)))};
  if (name == "flops") return FlopBudget{static_cast<std::int64_t>(std::min(1e18, parse_number(rest, whole)))};
  if (name == "deadline")
    return Deadline{
        std::chrono::nanoseconds(static_cast<std::int64_t>(std::min(1e9, parse_number(rest, whole)) * 1e9))};
  if (name == "max-probability-per-class") {
    const auto second = rest.find(':');
    OFFRAMP_REQUIRE(second != std::string_view::npos, "policy '" + whole + "' lacks its thresholds");
    const double classes = parse_number(rest.substr(0, second), whole);
    OFFRAMP_REQUIRE(classes >= 1 && classes < 1e6,
                    "policy '" + whole + "' has a number of classes that is out of range");
    return MaxProbability{
        Thresholds::per_class(parse_numbers(rest.substr(second + 1), whole), static_cast<Index>(classes))};
  }
  raise("policy '" + whole + "' is unknown");
}

}  // namespace detail

/// A policy from its text; raises an Error that quotes it where it is not understood.
OFFRAMP_COLD inline AnyPolicy parse_policy(std::string_view text) {
  return detail::parse_policy(text, 0);
}

/// A threshold as text that reads back to the same number.
inline std::string policy_number(float v) {
  if (std::isinf(v)) return v > 0 ? "inf" : "-inf";
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, v).ptr;
  return {buffer, end};
}

/// `t,t,...`
inline std::string policy_numbers(const std::vector<float>& values) {
  std::string s;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (i > 0) s += ',';
    s += policy_number(values[i]);
  }
  return s;
}

/// `name:t,t,...` from its thresholds.
inline std::string policy_text(std::string_view name, const std::vector<float>& thresholds) {
  return std::string(name) + (thresholds.empty() ? "" : ":") + policy_numbers(thresholds);
}

/// `outer(inner)`.
inline std::string policy_text_in(std::string_view outer, std::string_view inner) {
  std::string s(outer);
  s += '(';
  s += inner;
  s += ')';
  return s;
}

/// `route(target;below,...;inner)`.
inline std::string policy_text_in(const RouteRule& rule, std::string_view inner) {
  return policy_text_in("route",
                        std::to_string(rule.target) + ";" + policy_numbers(rule.below) + ";" + std::string(inner));
}

/// A gate's text.
inline std::string policy_text(const Gate& g) {
  std::string s;
  for (const auto& row : g.weights) s += policy_numbers(row) + ";";
  return policy_text_in("gate", s + policy_numbers(g.thresholds.values()));
}

}  // namespace offramp

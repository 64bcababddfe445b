/// @file report.hpp
/// A self-contained HTML page: what a policy does, what the known rules would do with the same exits, how reliable the
/// exits are, and images that left at each.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "evaluation.hpp"
#include "offramp/cache/cache_layers.hpp"

namespace tool {

inline std::string escaped(const std::string& s) {
  std::string r;
  for (const char c : s) r += c == '<' ? "&lt;" : c == '&' ? "&amp;" : c == '"' ? "&quot;" : std::string(1, c);
  return r;
}

inline std::string base64(const std::string& bytes) {
  static constexpr char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string r;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const auto byte = [&](std::size_t k) {
      return i + k < bytes.size() ? static_cast<unsigned>(static_cast<unsigned char>(bytes[i + k])) : 0u;
    };
    const unsigned v = byte(0) << 16 | byte(1) << 8 | byte(2);
    r += digits[v >> 18];
    r += digits[v >> 12 & 63];
    r += i + 1 < bytes.size() ? digits[v >> 6 & 63] : '=';
    r += i + 2 < bytes.size() ? digits[v & 63] : '=';
  }
  return r;
}

/// One sample as a bitmap in a data URI, 24 bits a pixel.
inline std::string image_uri(const Data& d, Index sample) {
  const auto w = static_cast<std::size_t>(d.width), h = static_cast<std::size_t>(d.height);
  const std::size_t row = (3 * w + 3) / 4 * 4, size = 54 + row * h;
  std::string b(size, '\0');
  const auto put = [&](std::size_t at, std::size_t v) {
    for (std::size_t i = 0; i < 4; ++i) b[at + i] = static_cast<char>(v >> (8 * i) & 0xff);
  };
  b[0] = 'B', b[1] = 'M';
  put(2, size), put(10, 54), put(14, 40), put(18, w), put(22, h), put(34, row * h);
  b[26] = 1, b[28] = 24;
  const auto pixels = d.sample(sample);
  for (std::size_t y = 0; y < h; ++y) {
    for (std::size_t x = 0; x < w; ++x) {
      for (std::size_t c = 0; c < 3; ++c) {  // blue, green, red, from the bottom up
        const std::size_t channel = d.channels == 3 ? 2 - c : 0;
        const float v = pixels[(channel * h + y) * w + x];
        b[54 + (h - 1 - y) * row + 3 * x + c] =
            static_cast<char>(static_cast<unsigned char>(std::clamp(v * 255.0f, 0.0f, 255.0f)));
      }
    }
  }
  return "data:image/bmp;base64," + base64(b);
}

struct CurvePoint {
  double x, y;
};
struct Series {
  std::string name, colour;
  std::vector<CurvePoint> points;
  bool is_line = true;
};

/// One plot: lines and points, axes from what they hold. `x_text` and `y_text` write an axis' numbers.
template <class X, class Y>
std::string plot(const std::vector<Series>& all, const std::string& x_label, X&& x_text, Y&& y_text) {
  constexpr double w = 720, h = 400, left = 70, right = 20, top = 20, bottom = 55;
  double x_min = 0, x_max = 0, y_min = 1e300, y_max = -1e300;
  for (const Series& s : all) {
    for (const CurvePoint& p : s.points)
      x_max = std::max(x_max, p.x), y_min = std::min(y_min, p.y), y_max = std::max(y_max, p.y);
  }
  const double pad = std::max(0.002, (y_max - y_min) * 0.08);
  y_min -= pad, y_max += pad, x_max = x_max > 0 ? x_max * 1.05 : 1;
  const auto x = [&](double v) { return left + (w - left - right) * (v - x_min) / (x_max - x_min); };
  const auto y = [&](double v) { return top + (h - top - bottom) * (y_max - v) / (y_max - y_min); };
  std::string s = "<svg viewBox='0 0 720 400' role='img'>";
  for (int i = 0; i <= 5; ++i) {
    const double a = y_min + (y_max - y_min) * i / 5, f = x_max * i / 5;
    s += "<line class='grid' x1='70' x2='700' y1='" + fixed(y(a), 1) + "' y2='" + fixed(y(a), 1) + "'/>";
    s += "<text x='64' y='" + fixed(y(a) + 4, 1) + "' text-anchor='end'>" + y_text(a) + "</text>";
    s += "<text x='" + fixed(x(f), 1) + "' y='" + fixed(h - bottom + 20, 1) + "' text-anchor='middle'>" + x_text(f) +
         "</text>";
  }
  s += "<text x='385' y='392' text-anchor='middle'>" + x_label + "</text>";
  double legend = top + 190;
  for (const Series& one : all) {
    if (one.points.empty()) continue;
    if (one.is_line) {
      s += "<polyline fill='none' stroke-width='2' stroke='" + one.colour + "' points='";
      for (const CurvePoint& p : one.points) s += fixed(x(p.x), 1) + "," + fixed(y(p.y), 1) + " ";
      s += "'/>";
    } else {
      for (const CurvePoint& p : one.points)
        s += "<circle r='6' fill='" + one.colour + "' cx='" + fixed(x(p.x), 1) + "' cy='" + fixed(y(p.y), 1) +
             "'><title>" + escaped(one.name) + "</title></circle>";
    }
    s += "<rect x='500' y='" + fixed(legend - 9, 1) + "' width='12' height='9' fill='" + one.colour +
         "'/><text x='518' y='" + fixed(legend, 1) + "'>" + escaped(one.name) + "</text>";
    legend += 17;
  }
  return s + "</svg>";
}

/// What the rules make of recorded scores: each a line over its thresholds, judged by `truth`. With prices in the
/// scores, x is milliseconds, else FLOPs.
inline std::vector<Series> rule_curves(const offramp::ExitScores& scores, offramp::Truth truth) {
  using namespace offramp;
  const auto line = [&](const char* name, const char* colour, const ExitRecords& r) {
    Series s{name, colour, {}, true};
    std::vector<float> all = r.confidence;
    std::sort(all.rbegin(), all.rend());
    const auto early = static_cast<std::size_t>(r.exits - 1);
    for (std::size_t i = 0; i <= 60; ++i) {
      const Outcome o =
          apply_thresholds(r, std::vector<float>(early, all[std::min(all.size() - 1, i * all.size() / 60)]));
      s.points.push_back({o.mean_price, o.accuracy});
    }
    return s;
  };
  const MaxProbability plain{Thresholds(1.0f)};
  std::vector<Series> all{
      line("one probability threshold", "#2b6cb0", judge(scores, plain, truth)),
      line("one entropy threshold", "#2f9e44", judge(scores, Entropy{Thresholds(0.0f)}, truth)),
      line("one threshold, geometric mean", "#9c36b5", judge(scores, Ensemble<MaxProbability>{plain, {}}, truth))};
  Series patience{"patience", "#868e96", {}, true};
  for (Index k = 1; k < scores.exits; ++k) {
    const Outcome o = apply_thresholds(judge(scores, Patience{k}, truth),
                                       std::vector<float>(static_cast<std::size_t>(scores.exits - 1), 1.0f));
    patience.points.push_back({o.mean_price, o.accuracy});
  }
  all.push_back(std::move(patience));
  return all;
}

/// Confidence against how often it is right, for each early exit.
inline std::string reliability(const offramp::ExitScores& scores, const std::vector<std::string>& names) {
  using namespace offramp;
  static constexpr const char* colours[] = {"#2b6cb0", "#2f9e44", "#9c36b5", "#e8590c", "#c92a2a", "#868e96"};
  const ExitRecords r = judge(scores, MaxProbability{Thresholds(1.0f)}, Truth::full_network);
  std::vector<Series> all{{"as sure as it is right", "#ced4da", {{0, 0}, {1, 1}}, true}};
  for (Index k = 0; k + 1 < r.exits; ++k) {
    std::array<double, 10> said{}, right{}, count{};
    for (Index i = 0; i < r.samples; ++i) {
      const float c = r.confidence_at(i, k);
      if (!std::isfinite(c)) continue;
      const auto bin = static_cast<std::size_t>(std::clamp(static_cast<int>(c * 10), 0, 9));
      said[bin] += static_cast<double>(c), right[bin] += r.right_at(i, k), ++count[bin];
    }
    Series s{names[static_cast<std::size_t>(k)], colours[static_cast<std::size_t>(k) % 6], {}, true};
    for (std::size_t b = 0; b < 10; ++b) {
      if (count[b] >= 10) s.points.push_back({said[b] / count[b], right[b] / count[b]});
    }
    all.push_back(std::move(s));
  }
  const auto text = [](double v) { return fixed(v, 1); };
  return plot(all, "largest probability; upwards the share that agrees with the full network", text, text);
}

inline std::string report(const offramp::Model& model, const std::string& name, const std::string& policy,
                          const Data& data, const Evaluation& e, const offramp::ExitScores& scores,
                          const std::string& more = {}) {
  std::string s =
      "<!doctype html><html lang='en'><meta charset='utf-8'><title>offramp: " + escaped(name) +
      "</title><style>"
      "body{font:15px/1.5 system-ui,sans-serif;max-width:860px;margin:2em auto;padding:0 1em;color:#222}"
      "table{border-collapse:collapse}td,th{padding:.25em .9em;text-align:right;border-bottom:1px solid "
      "#ddd}td:first-child,th:first-child{text-align:left}"
      "svg{width:100%;font:12px "
      "system-ui,sans-serif;fill:#444}.grid{stroke:#e4e4e4}"
      "figure{display:inline-block;margin:.3em;text-align:center;font-size:12px}"
      "figure img{width:56px;image-rendering:pixelated;border:2px solid #fff}.wrong img{border-color:#c92a2a}</style>";
  s += "<h1>" + escaped(name) + "</h1><p>" + std::to_string(e.samples) + " samples, policy <code>" + escaped(policy) +
       "</code>.</p>";
  s += "<table><tr><th></th><th>early exits</th><th>full network</th><th>saved</th></tr>";
  const auto row = [&](const std::string& a, const std::string& b, const std::string& c, const std::string& d) {
    s += "<tr><td>" + a + "</td><td>" + b + "</td><td>" + c + "</td><td>" + d + "</td></tr>";
  };
  row("accuracy", percent(e.share(e.right)), percent(e.share(e.full_right)), "");
  row("agreement", percent(e.share(e.agreeing)), "", "");
  row("mean FLOPs", engineering(e.mean_flops()),
      engineering(static_cast<double>(e.full_cost.flops) / static_cast<double>(e.samples)),
      percent(e.flops_saving(), 1));
  row("mean latency, ms", fixed(e.latency.mean, 4), fixed(e.full_latency.mean, 4), percent(e.latency_saving(), 1));
  row("p99 latency, ms", fixed(e.latency.p99, 4), fixed(e.full_latency.p99, 4), "");
  if (e.energy.early && e.energy.full) {
    row("energy, J", fixed(*e.energy.early, 6), fixed(*e.energy.full, 6),
        percent(1 - *e.energy.early / *e.energy.full, 1));
  } else {
    row("energy, J", EnergyCounter::none, "", "");
  }
  s += "</table>" + more;
  const double full_flops = static_cast<double>(e.full_cost.flops) / static_cast<double>(e.samples);
  const auto share_text = [](double v) { return percent(v, 1); };
  const auto curves = [&](const std::string& title, const offramp::ExitScores& of, offramp::Truth truth, double full_x,
                          double full_y, double x, double y, const std::string& label, auto&& text) {
    std::vector<Series> all = rule_curves(of, truth);
    all.push_back({"full network", "#212529", {{full_x, full_y}}, false});
    all.push_back({"the policy", "#d9480f", {{x, y}}, false});
    s += "<h2>" + title + "</h2>" + plot(all, label, text, share_text);
  };
  const auto flops_text = [](double v) { return engineering(v); };
  curves("Accuracy against FLOPs", scores, offramp::Truth::labels, full_flops, e.share(e.full_right), e.mean_flops(),
         e.share(e.right), "mean FLOPs of a sample, heads included", flops_text);
  curves("Agreement against FLOPs", scores, offramp::Truth::full_network, full_flops, 1, e.mean_flops(),
         e.share(e.agreeing), "mean FLOPs of a sample, heads included", flops_text);
  offramp::ExitScores timed = scores;
  timed.prices = offramp::measured_prices(model, data.samples);
  curves("Accuracy against latency", timed, offramp::Truth::labels, timed.prices.full_price(), e.share(e.full_right),
         e.latency.mean, e.share(e.right), "mean milliseconds of a sample; the lines from stages timed alone",
         [](double v) { return fixed(v, 3); });
  std::vector<std::string> names;
  for (const auto& x : model.exits()) names.push_back(x.name);
  s += "<h2>Reliability</h2>" + reliability(scores, names);
  s += "<h2>Exits</h2><table><tr><th>exit</th><th>share</th><th>accuracy</th><th>FLOPs up to here</th></tr>";
  for (std::size_t k = 0; k < e.exits.size(); ++k) {
    const ExitResult& x = e.exits[k];
    row(escaped(x.name), percent(e.share(x.samples)),
        x.samples > 0 ? percent(static_cast<double>(x.right) / static_cast<double>(x.samples)) : "-",
        engineering(static_cast<double>(model.exits()[k].upto.flops)));
  }
  s += "</table>";
  if (data.width > 0 && (data.channels == 1 || data.channels == 3)) {
    s += "<h2>What left where</h2><p>The first samples of each exit; a red frame marks a wrong answer.</p>";
    for (std::size_t k = 0; k < e.exits.size(); ++k) {
      s += "<h3>" + escaped(e.exits[k].name) + "</h3><div>";
      int shown = 0;
      for (Index i = 0; i < e.samples && shown < 12; ++i) {
        if (e.exit_of[static_cast<std::size_t>(i)] != static_cast<Index>(k)) continue;
        const auto answer = static_cast<std::size_t>(e.answer_of[static_cast<std::size_t>(i)]);
        s += std::string("<figure") +
             (static_cast<Index>(answer) == data.labels[static_cast<std::size_t>(i)] ? "" : " class='wrong'") +
             "><img alt='sample " + std::to_string(i) + "' src='" + image_uri(data, i) + "'><figcaption>" +
             escaped(answer < data.classes.size() ? data.classes[answer] : std::to_string(answer)) +
             "</figcaption></figure>";
        ++shown;
      }
      s += shown == 0 ? "none</div>" : "</div>";
    }
  }
  return s + "</html>\n";
}

/// The part of a report that only caching has: the certificate in words, the exits, the heads that were tried.
inline std::string cache_section(const offramp::CacheResult& r) {
  std::string s = "<h2>Certificate</h2><p>";
  s += r.has_exits ? escaped(text_of(r.calibration.certificate)) + "." : "No exits: " + escaped(r.reason) + ".";
  s += "</p><p>" + std::to_string(r.fitted) + " samples trained the heads, " + std::to_string(r.selected) +
       " chose among them, " + std::to_string(r.calibrated) +
       " certified. The certificate holds for inputs drawn like these; it says nothing of others.</p>";
  s += "<h2>Heads that were tried</h2><table><tr><th>behind</th><th>head</th><th>depth</th><th>cost</th><th>agrees"
       "</th><th></th></tr>";
  for (const auto& t : r.tried) {
    s += "<tr><td>" + escaped(t.place) + "</td><td>" + escaped(t.head) + "</td><td>" + percent(t.place_share, 1) +
         "</td><td>" + percent(t.head_share, 1) + "</td><td>" + percent(t.agreement) + "</td><td>" +
         (t.chosen ? "chosen" : "") + "</td></tr>";
  }
  s +=
      "</table><h2>Confidence</h2><p>Held-out loss of each kind (smaller is better; 1 is the full network):</p><table>";
  for (const auto& [name, value] : r.calibration.selection.tried)
    s += "<tr><td>" + escaped(name) + "</td><td>" + fixed(value, 4) + "</td></tr>";
  return s + "</table>";
}

}  // namespace tool

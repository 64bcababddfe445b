/// @file report.hpp
/// A self-contained HTML page: accuracy against FLOPs over all thresholds, and images that left at each exit.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "evaluation.hpp"

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
  double flops, accuracy;
};

/// Accuracy against mean FLOPs for one maximum-probability threshold on all exits, from strict to lax.
inline std::vector<CurvePoint> threshold_curve(const offramp::ExitRecords& r) {
  std::vector<float> thresholds{std::numeric_limits<float>::infinity()};
  for (int i = 0; i <= 60; ++i) thresholds.push_back(1 - std::pow(10.0f, -6 + 0.1f * static_cast<float>(i)));
  std::vector<CurvePoint> curve;
  for (const float t : thresholds) {
    const auto o = offramp::apply_thresholds(r, std::vector<float>(static_cast<std::size_t>(r.exits - 1), t));
    curve.push_back({o.mean_flops, o.accuracy});
  }
  return curve;
}

inline std::string plot(const std::vector<CurvePoint>& curve, const Evaluation& e) {
  constexpr double w = 720, h = 400, left = 70, right = 20, top = 20, bottom = 55;
  const double full = static_cast<double>(e.full_cost.flops) / static_cast<double>(e.samples),
               full_accuracy = e.share(e.full_right);
  double x_max = full, y_min = 1, y_max = 0;
  for (const CurvePoint& p : curve)
    x_max = std::max(x_max, p.flops), y_min = std::min(y_min, p.accuracy), y_max = std::max(y_max, p.accuracy);
  y_min = std::min({y_min, e.share(e.right), full_accuracy}),
  y_max = std::max({y_max, e.share(e.right), full_accuracy});
  const double pad = std::max(0.002, (y_max - y_min) * 0.08);
  y_min -= pad, y_max += pad;
  const auto x = [&](double v) { return left + (w - left - right) * v / (x_max * 1.05); };
  const auto y = [&](double v) { return top + (h - top - bottom) * (y_max - v) / (y_max - y_min); };
  std::string s = "<svg viewBox='0 0 720 400' role='img' aria-label='accuracy against FLOPs'>";
  for (int i = 0; i <= 5; ++i) {
    const double a = y_min + (y_max - y_min) * i / 5, f = x_max * 1.05 * i / 5;
    s += "<line class='grid' x1='70' x2='700' y1='" + fixed(y(a), 1) + "' y2='" + fixed(y(a), 1) + "'/>";
    s += "<text x='64' y='" + fixed(y(a) + 4, 1) + "' text-anchor='end'>" + percent(a, 1) + "</text>";
    s += "<text x='" + fixed(x(f), 1) + "' y='" + fixed(h - bottom + 20, 1) + "' text-anchor='middle'>" +
         engineering(f) + "</text>";
  }
  s += "<text x='385' y='392' text-anchor='middle'>mean FLOPs of a sample, heads included</text>";
  s += "<polyline class='curve' points='";
  for (const CurvePoint& p : curve) s += fixed(x(p.flops), 1) + "," + fixed(y(p.accuracy), 1) + " ";
  s += "'/><circle class='full' cx='" + fixed(x(full), 1) + "' cy='" + fixed(y(full_accuracy), 1) +
       "' r='5'><title>full network</title></circle>";
  s += "<text x='" + fixed(x(full) - 8, 1) + "' y='" + fixed(y(full_accuracy) + 18, 1) +
       "' text-anchor='end'>full network</text>";
  s += "<circle class='point' cx='" + fixed(x(e.mean_flops()), 1) + "' cy='" + fixed(y(e.share(e.right)), 1) +
       "' r='6'><title>the policy</title></circle>";
  s += "<text x='" + fixed(x(e.mean_flops()) + 9, 1) + "' y='" + fixed(y(e.share(e.right)) + 18, 1) +
       "'>the policy</text></svg>";
  return s;
}

inline std::string report(const offramp::Model& model, const std::string& name, const std::string& policy,
                          const Data& data, const Evaluation& e, const std::vector<CurvePoint>& curve) {
  std::string s =
      "<!doctype html><html lang='en'><meta charset='utf-8'><title>offramp: " + escaped(name) +
      "</title><style>"
      "body{font:15px/1.5 system-ui,sans-serif;max-width:860px;margin:2em auto;padding:0 1em;color:#222}"
      "table{border-collapse:collapse}td,th{padding:.25em .9em;text-align:right;border-bottom:1px solid "
      "#ddd}td:first-child,th:first-child{text-align:left}"
      "svg{width:100%;font:12px "
      "system-ui,sans-serif;fill:#444}.grid{stroke:#e4e4e4}.curve{fill:none;stroke:#2b6cb0;stroke-width:2}"
      ".full{fill:#444}.point{fill:#d9480f}figure{display:inline-block;margin:.3em;text-align:center;font-size:12px}"
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
  s += "</table><h2>Accuracy against FLOPs</h2><p>The line is one maximum-probability threshold for all exits, from "
       "never leaving early to always leaving at the first exit; the orange point is the policy.</p>" +
       plot(curve, e);
  s += "<h2>Exits</h2><table><tr><th>exit</th><th>share</th><th>accuracy</th><th>FLOPs</th></tr>";
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

}  // namespace tool

/// @file optimize.hpp
/// Makes smaller and earlier answering forms of one or several networks, measures all of them here on the user's data,
/// and keeps the best that the risk allows, with a certificate.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cache.hpp"
#include "compression.hpp"
#include "contest.hpp"
#include "offramp/route/cascade.hpp"
#include "report.hpp"

namespace tool {

struct OptimizeCommand {
  std::vector<std::string> more;
  std::string data, calibration, test, output, front, report;
  std::optional<double> disagreement, drop;
  double confidence = 0.9;
  std::string objective = "latency";
  std::vector<std::string> without;    ///< int8, prune, exits, cascade
  std::vector<double> remove{30, 50};  ///< per cent of FLOPs, of pruned forms
  Index samples = offramp::samples_for_ranges;
  Index distil = 6;  ///< epochs over 10,000 inputs, of pruned forms; over more inputs as many fewer
  std::uint64_t seed = 0;
  int threads = 2;
};

/// Set by the first interrupt: what has been tried until then is what there is to choose from.
inline std::atomic<bool>& interrupted() {
  static std::atomic<bool> flag{false};
  return flag;
}

/// One form of the networks.
struct Form {
  Form(std::string called, Model what) : name(std::move(called)), model(std::move(what)) {}

  std::string name;
  Model model;
  offramp::Selection selection;                 ///< its exits are of the model's early ones
  std::vector<offramp::ThresholdSetting> path;  ///< one setting without thresholds, for a form without exits
  std::size_t first = 0;                        ///< of the path, that a certificate begins with
  std::vector<float> thresholds;
  std::string policy = "never";
  std::string measured_policy = "never";  ///< that `measured` was measured with
  std::optional<Contender> measured;
  double loss = 0;       ///< on the samples that choose
  std::string rejected;  ///< why it is not a candidate
  bool on_front = false;
};

/// Makes forms, one after the other.
class Optimizer {
 public:
  Optimizer(std::vector<offramp::Version> versions, const OptimizeCommand& o, const offramp::ModelOptions& options)
      : versions_(std::move(versions)), o_(o), options_(options) {
    target_.epsilon = o.drop ? *o.drop / 100 : o.disagreement.value_or(1.0) / 100;
    target_.risk = o.drop ? offramp::Risk::accuracy_drop : offramp::Risk::disagreement;
    data_ = read_data(o.data);
    check_data(reference(), data_);
    Data rest = data_;
    if (o.calibration.empty()) {
      split_own();
    } else {
      rest = read_data(o.calibration);
      check_data(reference(), rest);
      take(rest, 0.4);
    }
    select_answers_ = answers_of(select_);
    certify_answers_ = answers_of(certify_);
  }

  const Model& reference() const { return versions_.back().model; }
  std::vector<Form>& forms() { return forms_; }
  bool uses(const char* what) const {
    return std::find(o_.without.begin(), o_.without.end(), what) == o_.without.end();
  }

  void make_all() {
    std::vector<offramp::Version> plain = versions_, quantized, cached, pruned;
    for (const auto& v : versions_) add(v.name, v.model);
    if (uses("int8")) {
      for (const auto& v : versions_) quantize(v, quantized);
    }
    if (uses("prune")) {
      // Of several versions the cheapest, which answers most.
      for (const double share : o_.remove) prune(versions_.front(), share, pruned);
      if (uses("int8")) {
        const auto fp32 = pruned;
        for (const auto& v : fp32) quantize(v, pruned);
      }
    }
    if (uses("exits")) {
      for (const auto& v : versions_) cache(v, cached);
      if (uses("int8")) {
        const auto fp32 = cached;
        for (const auto& v : fp32) quantize(v, cached);
      }
    }
    if (!uses("cascade")) return;
    // Every cheaper form in front of every plain or quantized form of the reference.
    std::vector<offramp::Version> fronts, backs{versions_.back()};
    if (!quantized.empty()) backs.push_back(quantized.back());
    for (std::size_t i = 0; i + 1 < versions_.size(); ++i) {
      fronts.push_back(versions_[i]);
      if (i < quantized.size()) fronts.push_back(quantized[i]);
    }
    for (const auto& v : pruned) fronts.push_back(v);
    for (const auto& v : cached) {
      if (v.name.find(versions_.back().name) == std::string::npos) fronts.push_back(v);
    }
    for (const auto& f : fronts) {
      for (const auto& b : backs) {
        attempt("cascade " + f.name + ", " + b.name, [&] {
          offramp::Version first{f.name, f.model}, last{b.name, b.model};
          first.model = at_opset(first.model, last.model.graph().opset);
          last.model = at_opset(last.model, first.model.graph().opset);
          const std::vector<offramp::Version> both{first, last};
          return Model(offramp::cascade(both), options_);
        });
      }
    }
  }

  /// Measures all forms in turn on the samples that choose, and marks the front.
  void measure() {
    std::vector<Contender> all;
    std::vector<std::size_t> which;
    for (std::size_t i = 0; i < forms_.size(); ++i) {
      if (!forms_[i].rejected.empty()) continue;
      all.push_back(contender(forms_[i].name, forms_[i].model, offramp::parse_policy(forms_[i].policy)));
      which.push_back(i);
    }
    contest(all, select_.samples, select_.labels, select_answers_);
    for (std::size_t k = 0; k < all.size(); ++k) {
      Form& f = forms_[which[k]];
      f.measured = std::move(all[k]);
      f.measured_policy = f.policy;
      f.loss = loss_of(*f.measured);
    }
    for (Form& f : forms_) {
      if (!f.measured) continue;
      f.on_front = std::none_of(forms_.begin(), forms_.end(), [&](const Form& g) {
        return g.measured && price(*g.measured) <= price(*f.measured) && g.loss <= f.loss &&
               (price(*g.measured) < price(*f.measured) || g.loss < f.loss);
      });
      if (!f.on_front) f.rejected = "another form is cheaper and loses no more";
    }
  }

  /// What is certified, with what the certificate says; null where nothing but the reference passes.
  Form* certify(offramp::Certificate& certificate) {
    std::vector<Form*> order;
    for (Form& f : forms_) {
      if (f.measured && f.loss <= target_.epsilon && f.name != versions_.back().name) order.push_back(&f);
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](const Form* a, const Form* b) { return price(*a->measured) < price(*b->measured); });
    double left = 1 - o_.confidence;
    for (Form* f : order) {
      if (price(*f->measured) >= price(*forms_[reference_form()].measured)) break;
      const double delta = share_of_an_attempt * left;
      left -= delta;
      const auto scores = scores_of(*f, certify_, certify_answers_);
      const offramp::ExitRecords r = records_of(f->selection, scores, truth_of(target_.risk));
      const auto c = offramp::certify_from(f->first, r, f->path, {target_.risk, target_.epsilon, delta, false});
      if (c.certificate.p_value > delta) {
        f->rejected = "its certificate failed on the samples that certify";
        continue;
      }
      certificate = c.certificate;
      certificate.delta = 1 - o_.confidence;
      f->thresholds = c.thresholds;
      set_policy(*f);
      f->rejected.clear();
      return f;
    }
    return nullptr;
  }

  double price(const Contender& c) const {
    return o_.objective == "flops"    ? c.flops
           : o_.objective == "memory" ? static_cast<double>(c.size_bytes)
                                      : c.latency.mean;
  }
  std::size_t reference_form() const {
    for (std::size_t i = 0; i < forms_.size(); ++i) {
      if (forms_[i].name == versions_.back().name) return i;
    }
    return 0;
  }
  std::vector<Index> answers_of(const Data& d) const {
    offramp::Session<Model> session(reference(), offramp::Never{}, 32);
    std::vector<Index> answers;
    const auto size = static_cast<std::size_t>(d.sample_size);
    for (std::size_t i = 0; i < static_cast<std::size_t>(d.count()); i += 32) {
      const std::size_t n = std::min<std::size_t>(32, static_cast<std::size_t>(d.count()) - i);
      for (const auto& p : session.predict_full(std::span(d.samples).subspan(i * size, n * size)))
        answers.push_back(p.label);
    }
    return answers;
  }

 private:
  static Data part_of(const Data& d, std::span<const Index> which) {
    Data p = d;
    p.samples.clear();
    p.labels.clear();
    for (const Index i : which) {
      const auto x = d.sample(i);
      p.samples.insert(p.samples.end(), x.begin(), x.end());
      p.labels.push_back(d.labels[static_cast<std::size_t>(i)]);
    }
    return p;
  }
  void take(const Data& d, double share) {
    const auto [first, second] = offramp::split_samples(d.count(), share, o_.seed);
    select_ = part_of(d, first);
    certify_ = part_of(d, second);
  }
  // Half of the data to fit, a fifth to choose, the rest to certify.
  void split_own() {
    const auto [fit, rest] = offramp::split_samples(data_.count(), 0.5, o_.seed);
    const Data others = part_of(data_, rest);
    data_ = part_of(data_, fit);
    take(others, 0.4);
  }

  template <class Make>
  void attempt(const std::string& name, Make&& make) {
    if (interrupted()) return;
    std::fprintf(stderr, "making: %s\n", name.c_str());
    try {
      add(name, make());
    } catch (const std::exception& e) {
      Form f(name, reference());
      f.rejected = e.what();
      forms_.push_back(std::move(f));
    }
  }

  // Ends what it tells the progress of, once interrupted.
  static offramp::CacheProgress interruptible_progress() {
    return [bar = cache_progress()](const std::string& what, Index done, Index total) {
      if (interrupted()) offramp::raise("interrupted");
      bar(what, done, total);
    };
  }

  void quantize(const offramp::Version& v, std::vector<offramp::Version>& into) {
    attempt(v.name + " int8", [&] {
      offramp::QuantizeOptions q;
      q.model = options_;
      Model m(offramp::quantize(v.model, first_samples(data_, o_.samples), q).graph, options_);
      into.push_back({v.name + " int8", m});
      return m;
    });
  }
  void prune(const offramp::Version& v, double share, std::vector<offramp::Version>& into) {
    const std::string name = v.name + " pruned " + fixed(share, 0);
    attempt(name, [&] {
      offramp::PruneOptions p;
      p.model = options_;
      p.share = share / 100;
      p.fit_samples = 2 * o_.samples;
      p.objective = objective_called(o_.objective);
      const double fewer = std::min(1.0, 1e4 / static_cast<double>(data_.count()));
      p.distil.epochs =
          std::min<Index>(o_.distil, std::max<Index>(1, std::lround(fewer * static_cast<double>(o_.distil))));
      p.distil.threads = o_.threads;
      p.distil.seed = p.seed = o_.seed;
      const auto bar = interruptible_progress();
      Model m(
          offramp::prune(v.model, data_.samples, p, [&](Index done, Index total) { bar("distilling", done, total); })
              .graph,
          options_);
      into.push_back({name, m});
      return m;
    });
  }
  void cache(const offramp::Version& v, std::vector<offramp::Version>& into) {
    const std::string name = v.name + " with exits";
    if (v.model.exit_count() > 1) {  // it brings its own
      into.push_back(v);
      return;
    }
    attempt(name, [&] {
      offramp::CacheOptions c;
      c.model = options_;
      c.seed = o_.seed;
      c.threads = o_.threads;
      c.certificate = {target_.risk, target_.epsilon, 1 - o_.confidence, false};
      c.certify = false;  // the form that is chosen is certified, on samples of its own
      c.objective = objective_called(o_.objective);
      offramp::CacheData d;
      d.samples = data_.samples;
      d.calibration = select_.samples;
      if (o_.drop) d.labels = data_.labels, d.calibration_labels = select_.labels;
      const offramp::CacheResult r = offramp::cache_layers(v.model, d, c, interruptible_progress());
      OFFRAMP_REQUIRE(r.has_exits, "no exits: " + r.reason);
      Model m(r.graph, options_);
      into.push_back({name, m});
      return m;
    });
  }

  /// Takes a model in: where it has exits, chooses among them and sets their thresholds.
  void add(const std::string& name, const Model& m) {
    Form f(name, m);
    if (m.exit_count() == 1) {
      f.path.push_back({});
    } else {
      auto scores = scores_of(f, select_, select_answers_);
      if (o_.objective == "latency") {
        scores.prices = offramp::measured_prices(m, select_.samples);
        scores.prices.full = reference_ms();
      }
      f.selection = offramp::choose_policy(scores, target_);
      const offramp::ThresholdSetting* likely = nullptr;
      if (!f.selection.exits.empty()) {
        f.path = offramp::path_of(records_of(f.selection, scores, offramp::Truth::full_network));
        // As strict as the certificate will probably have it: else forms would be compared where none of them ends up.
        const offramp::CertificateOptions asked{target_.risk, target_.epsilon,
                                                share_of_an_attempt * (1 - o_.confidence), false};
        const auto losses =
            offramp::losses_along(records_of(f.selection, scores, truth_of(target_.risk)), f.path, target_.risk);
        f.first = offramp::safest_of(losses, asked, certify_.count());
        const std::size_t passed =
            offramp::forecast_certified(std::span(losses).subspan(f.first), asked, certify_.count());
        if (passed > 0) likely = &f.path[f.first + passed - 1];
      }
      if (!likely || !offramp::has_early_exits(likely->thresholds)) {
        f.rejected = "no exit pays for itself at this risk";
        forms_.push_back(std::move(f));
        return;
      }
      f.thresholds = likely->thresholds;
      const auto kept = offramp::keep_exits(scores, f.selection.exits);
      add_route(f.selection, kept, target_, offramp::JudgedTarget(f.selection, kept, target_), *likely,
                [&m](Index from, Index to) { return m.can_skip(from, to); });
      set_policy(f);
    }
    forms_.push_back(std::move(f));
  }
  // Keeps only the exits that are used, and writes the policy for them.
  void set_policy(Form& f) {
    std::vector<Index>& exits = f.selection.exits;
    if (exits.empty()) return;
    f.policy = offramp::policy_text_of(f.selection, f.thresholds, f.model.class_count());
    if (static_cast<Index>(exits.size()) + 1 == f.model.exit_count() && f.model.metadata().contains("offramp.exits"))
      return;
    f.model = with_exits(f.model, exits);
    for (std::size_t k = 0; k < exits.size(); ++k) exits[k] = static_cast<Index>(k);
  }

  offramp::ExitScores scores_of(const Form& f, const Data& d, const std::vector<Index>& answers) const {
    auto s = offramp::record_scores(f.model, d.samples, d.labels, [](Index) {});
    s.reference = answers;
    s.full = reference().full_cost();
    return s;
  }
  static offramp::ExitRecords records_of(const offramp::Selection& s, const offramp::ExitScores& scores,
                                         offramp::Truth truth) {
    return offramp::judge_with(s, offramp::keep_exits(scores, s.exits), truth);
  }
  double loss_of(const Contender& c) const {
    if (target_.risk == offramp::Risk::disagreement) return 1 - c.agreement();
    Index right = 0;
    for (std::size_t i = 0; i < select_answers_.size(); ++i) right += select_answers_[i] == select_.labels[i];
    return static_cast<double>(right - c.right) / static_cast<double>(std::max<Index>(1, c.samples));
  }
  double reference_ms() {
    if (reference_ms_ == 0) reference_ms_ = offramp::measured_prices(reference(), select_.samples).full_price();
    return reference_ms_;
  }
  // Quantized files are of opset 13 at least; the operators of classifiers mean the same in 13 and a little below.
  Model at_opset(const Model& m, Index opset) const {
    if (m.graph().opset >= opset) return m;
    offramp::Graph g = m.graph();
    g.opset = opset;
    return Model(std::move(g), options_);
  }

  // Of what is left of delta: the first form that is tried passes nearly always.
  static constexpr double share_of_an_attempt = 0.8;

  std::vector<offramp::Version> versions_;
  const OptimizeCommand& o_;
  offramp::ModelOptions options_;
  offramp::SelectionTarget target_;
  Data data_, select_, certify_;
  std::vector<Index> select_answers_, certify_answers_;
  std::vector<Form> forms_;
  double reference_ms_ = 0;
};

/// The forms as points of loss against price, and a table.
inline std::string optimize_report(const std::vector<Form>& forms, const Form& chosen, const std::string& certificate) {
  double most = 0, worst = 0.001, least = 0;
  for (const Form& f : forms) {
    if (!f.measured) continue;
    most = std::max(most, f.measured->latency.mean);
    worst = std::max(worst, f.loss);
    least = std::min(least, f.loss);
  }
  const auto x = [&](double ms) { return 60 + 600 * ms / most; };
  const auto y = [&](double loss) { return 20 + 300 * (loss - least) / (worst - least); };
  std::string svg = "<svg viewBox='0 0 700 370' role='img'><title>loss against mean latency</title>";
  svg +=
      "<line x1='60' y1='320' x2='670' y2='320' stroke='#888'/><line x1='60' y1='20' x2='60' y2='320' stroke='#888'/>";
  svg += "<text x='360' y='355' text-anchor='middle'>mean milliseconds a sample, up to " + fixed(most, 3) + "</text>";
  svg += "<text x='10' y='16'>loss, from " + percent(least) + " (top) to " + percent(worst) + "</text>";
  std::string rows;
  for (const Form& f : forms) {
    if (f.measured) {
      const bool best = &f == &chosen;
      svg += "<circle cx='" + fixed(x(f.measured->latency.mean), 1) + "' cy='" + fixed(y(f.loss), 1) + "' r='" +
             (best ? "8" : "5") + "' fill='" +
             (best         ? "#c02020"
              : f.on_front ? "#2060c0"
                           : "#aaaaaa") +
             "'><title>" + escaped(f.name) + "</title></circle>";
    }
    rows +=
        "<tr><td>" + escaped(f.name) + "</td><td>" +
        (f.measured ? percent(f.measured->accuracy()) + "</td><td>" + percent(f.measured->agreement()) + "</td><td>" +
                          engineering(f.measured->flops) + "</td><td>" + fixed(f.measured->latency.mean, 4) +
                          "</td><td>" + engineering(static_cast<double>(f.measured->size_bytes))
                    : "</td><td></td><td></td><td></td><td>") +
        "</td><td>" +
        escaped(&f == &chosen ? "chosen"
                : f.on_front  ? "on the front"
                              : f.rejected) +
        "</td></tr>";
  }
  return "<!doctype html><html lang='en'><meta charset='utf-8'><title>offramp optimize</title><style>body{font:15px "
         "sans-serif;max-width:60em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}td,th{padding:.2em "
         ".7em;border-bottom:1px solid #ddd;text-align:left}svg{width:100%}</style><h1>Forms that were tried</h1><p>" +
         escaped(certificate) + "</p>" + svg +
         "</svg><table><tr><th>form</th><th>accuracy</th><th>agreement</th><th>FLOPs</th><th>mean "
         "ms</th><th>bytes</th><th></th></tr>" +
         rows + "</table></html>\n";
}

inline int optimize_command(const std::string& model, const OptimizeCommand& o, const offramp::ModelOptions& options,
                            bool as_json) {
  std::signal(SIGINT, [](int) { interrupted() = true; });
  std::vector<std::string> paths{model};
  paths.insert(paths.end(), o.more.begin(), o.more.end());
  Optimizer optimizer(load_versions(paths, options), o, options);
  optimizer.make_all();
  optimizer.measure();
  offramp::Certificate certificate;
  Form* found = optimizer.certify(certificate);
  const bool passed = found != nullptr;
  Form& best = passed ? *found : optimizer.forms()[optimizer.reference_form()];
  const std::string words = passed ? text_of(certificate) : "nothing but the reference passes at this risk";
  const auto save = [&](const Form& f, const std::string& path, bool certified) {
    // A form on the front as its row was measured; the chosen one as it was certified.
    std::map<std::string, std::string> metadata{{"offramp.policy", certified ? f.policy : f.measured_policy}};
    if (certified) metadata["offramp.certificate"] = words;
    offramp::save_onnx(f.model, path, offramp::ExitForm::outputs, metadata);
  };
  if (!o.output.empty()) save(best, o.output, passed);
  json j = {{"chosen", best.name},
            {"certificate", passed ? certificate_json(certificate) : json(nullptr)},
            {"forms", json::array()}};
  Index number = 0;
  for (const Form& f : optimizer.forms()) {
    json x = {{"name", f.name}, {"on_front", f.on_front}, {"chosen", &f == &best}, {"rejected", f.rejected}};
    if (f.measured) {
      x.update(contender_json(*f.measured));
      x["loss"] = f.loss;
    }
    if (f.on_front && !o.front.empty()) {
      std::filesystem::create_directories(o.front);
      const std::string path = o.front + "/front_" + std::to_string(number++) + ".onnx";
      save(f, path, false);
      x["file"] = path;
    }
    j["forms"].push_back(std::move(x));
  }
  if (!o.report.empty()) offramp::onnx::write_file(o.report, optimize_report(optimizer.forms(), best, words));
  std::vector<Contender> last;
  if (!o.test.empty()) {
    const Data test = read_data(o.test);
    check_data(optimizer.reference(), test);
    last.push_back(contender("reference", optimizer.reference(), offramp::Never{}));
    last.push_back(contender("chosen: " + best.name, best.model, offramp::parse_policy(best.policy)));
    std::vector<std::size_t> row_of;  // of each form; 0, the reference's own, or unused
    for (const Form& f : optimizer.forms()) {
      const bool fresh = f.on_front && &f != &optimizer.forms()[optimizer.reference_form()];
      row_of.push_back(fresh ? last.size() : 0);
      if (fresh) last.push_back(contender(f.name, f.model, offramp::parse_policy(f.measured_policy)));
    }
    contest(last, test.samples, test.labels);
    for (std::size_t i = 0; i < row_of.size(); ++i)
      if (optimizer.forms()[i].on_front) j["forms"][i]["test"] = contender_json(last[row_of[i]]);
    Energy energy;
    const auto cycle = [&](Contender& c) {
      offramp::Session<Model> session(c.model, c.policy, 1);
      Index at = 0;
      return joules_of([&] { session.predict(test.sample(at = (at + 1) % test.count())); });
    };
    energy.early = cycle(last[1]);
    energy.full = cycle(last[0]);
    j["test"] = contender_json(last[1]);
    j["test"]["full"] = contender_json(last[0]);
    j["test"]["energy"] = energy.to_json();
  }
  if (!o.front.empty()) offramp::onnx::write_file(o.front + "/manifest.json", j.dump(2) + "\n");
  if (as_json) {
    std::cout << j.dump(2) << '\n';
    return 0;
  }
  std::printf("%-52s %9s %10s %10s %10s %10s\n", "form, on the samples that choose", "accuracy", "agreement", "FLOPs",
              "mean ms", "bytes");
  for (const Form& f : optimizer.forms()) {
    if (f.measured)
      std::printf("%-52s %9s %10s %10s %10s %10s%s\n", f.name.substr(0, 52).c_str(),
                  percent(f.measured->accuracy()).c_str(), percent(f.measured->agreement()).c_str(),
                  engineering(f.measured->flops).c_str(), fixed(f.measured->latency.mean, 4).c_str(),
                  engineering(static_cast<double>(f.measured->size_bytes)).c_str(), f.on_front ? "  front" : "");
    if (!f.rejected.empty() && !f.on_front) std::printf("  rejected: %s: %s\n", f.name.c_str(), f.rejected.c_str());
  }
  std::printf("\nchosen: %s\n%s\n", best.name.c_str(), words.c_str());
  if (!last.empty()) {
    std::printf("\non %s\n", o.test.c_str());
    print_contenders(last);
  }
  if (!o.output.empty()) std::printf("\nwritten: %s\n", o.output.c_str());
  return 0;
}

}  // namespace tool

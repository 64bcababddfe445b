// The known exit rules and ours on the same heads: policies MODEL.onnx DATA [SPLITS] [--agreement]
//
// The data are cut in two at random, SPLITS times (10): every rule chooses its thresholds on one half and is judged on
// the other. One cut alone cannot tell rules apart that differ by a point. FLOPs count every head that runs.
//   entropy             BranchyNet: one entropy threshold (Teerapittayanon et al. 2016)
//   max probability     Shallow-Deep Networks: one threshold (Kaya et al. 2019)
//   patience            PABEE: so many exits in a row agree (Zhou et al. 2020)
//   geometric ensemble  Zero Time Waste: one threshold on the geometric mean (Wolczyk et al. 2021)
//   layer caching       each exit alone: the lowest threshold whose answers are right often enough (Abedi et al. 2022)
//   offramp             exits, confidence and thresholds chosen together
// Prints means over the cuts: points lost and FLOPs saved where a drop of 0, 0.5 and 1 point was allowed; and the
// accuracy over FLOPs budgets (the area under the curve over the range that every rule reaches). With --agreement no
// labels are read and "accuracy" is agreement with the full network.
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "data.hpp"
#include "offramp/calibrate/select.hpp"
#include "offramp/offramp.hpp"

namespace {

using namespace offramp;

struct Point {
  double flops = 1, accuracy = 0;          // on the test data, FLOPs as a share of the full network's
  double known_flops = 1, known_drop = 0;  // on the calibration data
};
struct Rule {
  std::string name;
  std::vector<Point> points;
};

Point point_of(const ExitRecords& known, const ExitRecords& test, const std::vector<float>& thresholds) {
  const Outcome a = apply_thresholds(known, thresholds), b = apply_thresholds(test, thresholds);
  return {b.mean_flops / full_outcome(test).mean_flops, b.accuracy, a.mean_flops / full_outcome(known).mean_flops,
          full_outcome(known).accuracy - a.accuracy};
}

// One threshold for all exits, at quantiles of the confidence.
template <class P>
Rule one_threshold(const std::string& name, const P& policy, const ExitScores& known, const ExitScores& test,
                   Truth truth) {
  const ExitRecords a = judge(known, policy, truth), b = judge(test, policy, truth);
  std::vector<float> all = a.confidence;
  std::sort(all.begin(), all.end());
  Rule r{name, {}};
  const auto early = static_cast<std::size_t>(a.exits - 1);
  for (std::size_t i = 0; i <= 400; ++i) {
    const float t = all[std::min(all.size() - 1, i * all.size() / 400)];
    r.points.push_back(point_of(a, b, std::vector<float>(early, t)));
  }
  return r;
}

// Patience has no threshold: the confidence is the number of agreements.
Rule patience(const ExitScores& known, const ExitScores& test, Truth truth) {
  Rule r{"patience", {}};
  for (Index k = 1; k < known.exits; ++k) {
    const Patience p{k};
    const ExitRecords a = judge(known, p, truth), b = judge(test, p, truth);
    r.points.push_back(point_of(a, b, std::vector<float>(static_cast<std::size_t>(a.exits - 1), 1.0f)));
  }
  return r;
}

Rule layer_caching(const ExitScores& known, const ExitScores& test, Truth truth) {
  const MaxProbability p{Thresholds(1.0f)};
  const ExitRecords a = judge(known, p, truth), b = judge(test, p, truth),
                    agreement = judge(known, p, Truth::full_network);
  Rule r{"layer caching", {}};
  for (double tolerance = 0; tolerance < 0.6; tolerance = tolerance * 1.15 + 0.0005) {
    std::vector<float> thresholds;
    for (Index k = 0; k + 1 < a.exits; ++k) {
      std::vector<std::pair<float, bool>> c;
      for (Index i = 0; i < a.samples; ++i) c.emplace_back(agreement.confidence_at(i, k), agreement.right_at(i, k));
      std::sort(c.rbegin(), c.rend());
      float best = std::numeric_limits<float>::infinity();
      double wrong = 0;
      for (std::size_t i = 0; i < c.size(); ++i) {
        wrong += !c[i].second;
        if (wrong <= tolerance * static_cast<double>(i + 1)) best = c[i].first;
      }
      thresholds.push_back(best);
    }
    r.points.push_back(point_of(a, b, thresholds));
  }
  return r;
}

// Paths of both ways to search, with all exits and with those that pay; what they lose is estimated by
// cross-validation, since the best of many settings looks better on its own data than it is.
Rule ours(const ExitScores& known, const ExitScores& test, Truth truth) {
  Rule r{"offramp", {}};
  const Risk risk = truth == Truth::labels ? Risk::accuracy_drop : Risk::disagreement;
  const auto add = [&](const Selection& s, Truth search) {
    const ExitScores some = keep_exits(known, s.exits), other = keep_exits(test, s.exits);
    const ExitRecords a = judge_with(s, some, truth), b = judge_with(s, other, truth);
    const ExitRecords found = search == truth ? a : judge_with(s, some, search);
    const auto path = denser_path(found, threshold_path(found, 120));
    const auto risks = validated_risks(validated_losses(path, some, s, risk, search));
    for (std::size_t i = 0; i < path.size(); ++i) {
      r.points.push_back(point_of(a, b, path[i].thresholds));
      r.points.back().known_drop = risks[i].mean;
    }
  };
  Selection all;
  for (Index k = 0; k + 1 < known.exits; ++k) all.exits.push_back(k);
  for (const PolicyKind kind : {PolicyKind::max_probability, PolicyKind::gate}) {
    all.kind = kind;
    all.gate = gate_for(kind, known);
    add(all, Truth::full_network);
    if (truth == Truth::labels) add(all, Truth::labels);
  }
  for (const double epsilon : {0.005, 0.03}) {
    const Selection s = choose_policy(known, {risk, epsilon, {}});
    if (!s.exits.empty()) add(s, Truth::full_network);
  }
  return r;
}

// What calibration chooses for one drop.
Point chosen(const ExitScores& known, const ExitScores& test, Truth truth, double drop) {
  ExitCalibrationOptions o;
  o.target.risk = truth == Truth::labels ? Risk::accuracy_drop : Risk::disagreement;
  o.target.epsilon = drop;
  const ExitCalibration c = calibrate_exits(known, known, o);
  const MaxProbability plain{Thresholds(1.0f)};
  Point full{1, full_outcome(judge(test, plain, truth)).accuracy, 1, 0};
  if (!c.has_exits) return full;
  const Selection& s = c.selection;
  return point_of(judge_with(s, keep_exits(known, s.exits), truth), judge_with(s, keep_exits(test, s.exits), truth),
                  c.thresholds);
}

constexpr double drops[] = {0.0, 0.005, 0.01};

// Sums over cuts.
struct Sums {
  double lost[std::size(drops)] = {}, saved[std::size(drops)] = {}, area = 0;
};

void judge_rules(const ExitScores& known, const ExitScores& test, Truth truth,
                 std::vector<std::pair<std::string, Sums>>& sums) {
  const MaxProbability plain{Thresholds(1.0f)};
  std::vector<Rule> rules;
  rules.push_back(one_threshold("entropy", Entropy{Thresholds(0.0f)}, known, test, truth));
  rules.push_back(one_threshold("max probability", plain, known, test, truth));
  rules.push_back(patience(known, test, truth));
  rules.push_back(one_threshold("geometric ensemble", Ensemble<MaxProbability>{plain, {}}, known, test, truth));
  rules.push_back(layer_caching(known, test, truth));
  rules.push_back(ours(known, test, truth));
  const Outcome full = full_outcome(judge(test, plain, truth));
  // The range of budgets that every rule reaches; patience, with its few points, does not narrow it.
  double least = 0;
  for (const Rule& r : rules) {
    double own = 1;
    for (const Point& p : r.points) own = std::min(own, p.known_flops);
    if (r.name != "patience") least = std::max(least, own);
  }
  sums.resize(rules.size());
  for (std::size_t k = 0; k < rules.size(); ++k) {
    const Rule& r = rules[k];
    auto& [name, sum] = sums[k];
    name = r.name;
    for (std::size_t d = 0; d < std::size(drops); ++d) {
      Point best{1, full.accuracy, 1, 0};  // no exits, where nothing keeps to the drop
      if (r.name == "offramp") {
        best = chosen(known, test, truth, drops[d]);
      } else {
        for (const Point& p : r.points) {
          if (p.known_drop <= drops[d] + 1e-12 && p.known_flops < best.known_flops) best = p;
        }
      }
      sum.lost[d] += full.accuracy - best.accuracy;
      sum.saved[d] += 1 - best.flops;
    }
    // At each budget the setting that is best on the calibration data, judged on the test data.
    constexpr int steps = 400;
    for (int i = 0; i < steps; ++i) {
      const double budget = least + (1 - least) * (i + 0.5) / steps;
      const Point* best = nullptr;
      for (const Point& p : r.points) {
        if (p.known_flops <= budget && (!best || p.known_drop < best->known_drop)) best = &p;
      }
      sum.area += (best ? best->accuracy : 0) / steps;
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "policies MODEL.onnx DATA [SPLITS] [--agreement]\n");
    return 2;
  }
  const bool agreement = std::string(argv[argc - 1]) == "--agreement";
  const Truth truth = agreement ? Truth::full_network : Truth::labels;
  const int splits = argc - agreement > 3 ? std::max(1, std::atoi(argv[3])) : 10;
  const Model m = load_onnx(argv[1]);
  const tool::Data d = tool::read_data(argv[2]);
  const ExitScores all = record_scores(m, d.samples, d.labels, [](Index) {});
  std::vector<std::pair<std::string, Sums>> sums;
  for (int s = 0; s < splits; ++s) {
    const auto [some, others] = split_samples(all.samples, 0.5, static_cast<std::uint64_t>(s));
    judge_rules(keep_samples(all, some), keep_samples(all, others), truth, sums);
  }
  std::printf("%d cuts of %lld samples; points lost and FLOPs saved\n", splits, static_cast<long long>(all.samples));
  std::printf("%-20s %18s %18s %18s %10s\n", "", "drop 0", "0.5 pt", "1 pt", "area");
  for (const auto& [name, sum] : sums) {
    std::printf("%-20s", name.c_str());
    for (std::size_t k = 0; k < std::size(drops); ++k)
      std::printf("   %+6.2f, %5.1f %%", 100 * sum.lost[k] / splits, 100 * sum.saved[k] / splits);
    std::printf("%11.4f\n", sum.area / splits);
  }
  return 0;
}

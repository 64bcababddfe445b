// How often a certificate holds: certificates MODEL.onnx DATA [SPLITS] [N] [--per-class]
//
// SPLITS times (1,000) the samples are split at random: 2,000 choose the path of thresholds, and N (5,000) of the
// others certify. The others together are the population that these N were drawn from, so the risk on them is the true
// one; a violation is a true risk above epsilon. (Drawn without replacement, the N say at least as much as independent
// draws: Hoeffding 1963, section 6.) Prints for each risk, epsilon and delta how often there was a certificate, the
// share of violations, the mean true risk over epsilon, and the FLOPs saved. With --per-class the certificates are
// those for each class, and the true risk is that of the class where it is largest.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "data.hpp"
#include "offramp/calibrate/select.hpp"
#include "offramp/offramp.hpp"

namespace {
using namespace offramp;

struct Tally {
  Index splits = 0, certified = 0, above = 0;
  double risk = 0, saved = 0;
};
}  // namespace

int main(int argc, char** argv) {
  const bool per_class = argc > 1 && std::string(argv[argc - 1]) == "--per-class";
  if (per_class) --argc;
  if (argc < 3) {
    std::fprintf(stderr, "certificates MODEL.onnx DATA [SPLITS] [N] [--per-class]\n");
    return 2;
  }
  const Index splits = argc > 3 ? std::atol(argv[3]) : 1000, n = argc > 4 ? std::atol(argv[4]) : 5000;
  constexpr Index choosing = 2000;
  const Model m = load_onnx(argv[1]);
  const tool::Data data = tool::read_data(argv[2]);
  const ExitScores all = record_scores(m, data.samples, data.labels, [](Index) {});
  OFFRAMP_REQUIRE(all.samples > n + choosing, "there are too few samples for such a split");
  // Judging does not depend on the split: it is done once, and splits pick rows.
  const auto rows = [](const ExitRecords& r, std::span<const Index> which) {
    ExitRecords some = r;
    some.samples = static_cast<Index>(which.size());
    some.confidence.clear(), some.right.clear(), some.full.clear(), some.classes.clear();
    const auto width = static_cast<std::ptrdiff_t>(r.exits);
    for (const Index i : which) {
      const auto at = static_cast<std::ptrdiff_t>(i) * width;
      some.confidence.insert(some.confidence.end(), r.confidence.begin() + at, r.confidence.begin() + at + width);
      some.right.insert(some.right.end(), r.right.begin() + at, r.right.begin() + at + width);
      some.full.push_back(r.full[static_cast<std::size_t>(i)]);
      some.classes.push_back(r.classes[static_cast<std::size_t>(i)]);
    }
    return some;
  };
  const ExitRecords agreement = judge_with(Confidence{}, all, Truth::full_network),
                    labelled = judge_with(Confidence{}, all, Truth::labels);
  std::printf("%ld splits: %ld choose, %ld certify, out of a population of %ld\n", static_cast<long>(splits),
              static_cast<long>(choosing), static_cast<long>(n), static_cast<long>(all.samples - choosing));
  std::printf("%-14s %8s %6s %10s %12s %12s %12s\n", "risk", "epsilon", "delta", "certified", "violations",
              "risk/epsilon", "FLOPs saved");
  struct Case {
    Risk risk;
    double epsilon, delta;
    Tally tally;
  };
  std::vector<Case> cases;
  for (const Risk risk : {Risk::disagreement, Risk::accuracy_drop}) {
    for (const double epsilon : {0.005, 0.01, 0.02, 0.05}) {
      for (const double delta : {0.1, 0.05}) cases.push_back({risk, epsilon, delta, {}});
    }
  }
  std::mt19937_64 random(1);
  std::vector<Index> order(static_cast<std::size_t>(all.samples));
  std::iota(order.begin(), order.end(), Index{0});
  for (Index s = 0; s < splits; ++s) {
    std::shuffle(order.begin(), order.end(), random);
    const std::span<const Index> choose(order.data(), choosing),
        certify(order.data() + choosing, static_cast<std::size_t>(n)),
        population(order.data() + choosing, order.size() - static_cast<std::size_t>(choosing));
    const ExitRecords known = rows(agreement, choose);
    const auto path = denser_path(known, threshold_path(known, 60));
    // Where a walk for disagreement begins does not depend on losses.
    const std::vector<LossCount> seen = losses_along(rows(labelled, choose), path, Risk::accuracy_drop);
    const ExitRecords fresh[] = {rows(agreement, certify), rows(labelled, certify)},
                      judged[] = {rows(agreement, population), rows(labelled, population)};
    for (Case& c : cases) {
      const std::size_t which = c.risk == Risk::disagreement ? 0 : 1;
      const CertificateOptions asked{c.risk, c.epsilon, c.delta, per_class};
      const CertifiedThresholds r = certify_from(safest_of(seen, asked, n), fresh[which], path, asked);
      const Outcome full = full_outcome(judged[which]), o = apply_thresholds(judged[which], r.thresholds);
      double risk = full.accuracy - o.accuracy;
      if (per_class) {
        for (const auto& x : detail::losses_of(judged[which], r.thresholds, c.risk, true).classes)
          risk = std::max(risk, static_cast<double>(x.lost - x.won) / static_cast<double>(std::max<Index>(1, x.n)));
      }
      ++c.tally.splits;
      c.tally.certified += r.has_exits;
      c.tally.above += risk > c.epsilon;
      c.tally.risk += risk / c.epsilon;
      c.tally.saved += 1 - o.mean_flops / full.mean_flops;
    }
  }
  for (const Case& c : cases) {
    const auto k = static_cast<double>(c.tally.splits);
    std::printf("%-14s %8.3f %6.2f %9.1f%% %11.1f%% %12.2f %11.1f%%\n",
                c.risk == Risk::disagreement ? "disagreement" : "accuracy drop", c.epsilon, c.delta,
                100 * static_cast<double>(c.tally.certified) / k, 100 * static_cast<double>(c.tally.above) / k,
                c.tally.risk / k, 100 * c.tally.saved / k);
  }
  return 0;
}

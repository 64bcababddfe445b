// A user's own exit policy: any callable that satisfies the concept ExitPolicy.
#include <cstdio>
#include <vector>

#include "offramp/network/network.hpp"
#include "offramp/policy/combine.hpp"
#include "offramp/session/session.hpp"

// Leaves early only with an answer that costs little when it is wrong.
struct HarmlessOnly {
  offramp::Index dangerous_class;

  offramp::Verdict operator()(offramp::ExitContext& c) const noexcept {
    const auto p = c.probabilities[static_cast<std::size_t>(c.label())];
    return {c.label() != dangerous_class && p > 0.6f, p};
  }
};
static_assert(offramp::ExitPolicy<HarmlessOnly>);

int main() {
  using namespace offramp;
  Network net(input<2>, Dense<2, 2>({1, 0, 0, 1}, {}), Exit(Dense<2, 2>({1, 0, 0, 1}, {})),
              Dense<2, 2>({1, 0, 0, 1}, {}));
  Session session(net, HarmlessOnly{1}, 2);
  const auto answers = session.predict(std::vector<float>{3, 0, 0, 3});
  std::printf("exits %ld and %ld\n", static_cast<long>(answers[0].exit), static_cast<long>(answers[1].exit));
  return answers[0].exit == 0 && answers[1].exit == 1 ? 0 : 1;
}

// Built with -fno-exceptions -fno-rtti: everything but onnx/.
#include "offramp/calibrate/calibrate.hpp"
#include "offramp/exit/heads.hpp"
#include "offramp/graph/model.hpp"
#include "offramp/network/network.hpp"
#include "offramp/policy/parse.hpp"
#include "offramp/session/model_session.hpp"

int main() {
  using namespace offramp;
  Network net(input<2>, Dense<2, 2>({1, 0, 0, 1}, {}), Exit(Dense<2, 2>({1, 0, 0, 1}, {})),
              Dense<2, 2>({1, 0, 0, 1}, {}));
  Session session(net, parse_policy("max-probability:0.6"));
  return session.predict(std::vector<float>{0, 4})[0].label == 1 ? 0 : 1;
}

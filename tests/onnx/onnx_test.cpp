#include "offramp/onnx/onnx.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "graphs.hpp"
#include "offramp/graph/infer.hpp"
#include "offramp/session/model_session.hpp"

namespace offramp {
namespace {

std::span<const std::byte> bytes_of(const std::string& s) {
  return std::as_bytes(std::span(s));
}

TEST(Onnx, WritesWhatItReads) {
  const Model m(test::residual_network());
  const std::string file = save_onnx(m, ExitForm::outputs, {{"key", "value"}});
  const Model again = load_onnx(bytes_of(file));
  EXPECT_EQ(again.metadata().at("key"), "value");
  EXPECT_EQ(again.exit_count(), 3);
  EXPECT_EQ(again.total_cost(), m.total_cost());
  const std::vector<Tensor> in{test::random_tensor({3, 3, 8, 8}, 4)};
  const auto a = m.run(in), b = again.run(in);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(std::memcmp(a[i].data(), b[i].data(), a[i].bytes()), 0);
  EXPECT_EQ(save_onnx(again), file);
}

TEST(Onnx, NestedExitsComeBackAsTheSameNetwork) {
  const Model m(test::residual_network());
  const std::map<std::string, std::string> policy{{"offramp.policy", "max-probability:0.5,0.6"}};
  const std::string file = save_onnx(m, ExitForm::nested_if, policy);
  // Another runtime sees one output behind two nested If nodes.
  const Graph raw = onnx::read(bytes_of(file));
  EXPECT_EQ(raw.outputs.size(), 1u);
  EXPECT_EQ(std::count_if(raw.nodes.begin(), raw.nodes.end(), [](const Node& n) { return n.op == "If"; }), 1);
  // The library sees three exits and the policy.
  const Model again = load_onnx(bytes_of(file));
  ASSERT_TRUE(again.has_plan()) << again.why_not();
  EXPECT_EQ(again.exit_count(), 3);
  auto s = make_session(again), expected = Session(m, parse_policy("max-probability:0.5,0.6"));
  const auto x = test::random_floats(30 * 192, 8, -2, 2);
  for (Index i = 0; i < 30; ++i) {
    const auto sample = std::span(x).subspan(static_cast<std::size_t>(i) * 192, 192);
    const Prediction p = s.predict(sample)[0], q = expected.predict(sample)[0];
    EXPECT_EQ(p.exit, q.exit);
    EXPECT_EQ(p.label, q.label);
    // And the If file, run as it is, gives the logits of the exit that the policy takes.
    const std::vector<Tensor> in{Tensor::of<float>({1, 3, 8, 8}, sample)};
    const Operators operators;
    const auto y = evaluate(raw, in, {operators, kernel::kernels_for(best_isa()), {}});
    EXPECT_EQ(ExitContext::label_of(y[0].values<float>()), q.label);
  }
}

// Each kind of policy, written as operators, leaves where the policy leaves.
TEST(Onnx, NestedExitsDecideAsTheirPolicyDoes) {
  const Model m(test::residual_network());
  // Samples of all sizes, so that scores are of all sizes, too.
  auto x = test::random_floats(40 * 192, 9, -2, 2);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] *= std::pow(0.7f, static_cast<float>(i / 192 % 20));
  std::string means;
  for (int i = 0; i < 16; ++i) means += ",-" + std::to_string(0.5 + 0.1 * i).substr(0, 4);
  const std::string row = "0.2,0.5,0.1,-0.3,0.4,0.2,-0.1,0.1,-0.1,0.2,0.0" + means;
  std::string gate = "gate(";
  gate += row + ';' + row + ";0.75,0.8)";
  const std::vector<std::string> policies{
      "max-probability:0.99999,0.999",
      "max-probability-per-class:4:0.9999,0.99999,inf,0.99,0.999,0.9,0.99,0.5",
      "ensemble(max-probability:0.99999,0.999)",
      gate,
      "ensemble(gate(0.2,0.5,0.1,-0.3,0.4,0.2,0;0.1,0.5,0.1,-0.3,0.4,0.2,0;0.7,0.7))",
      "last-ensemble(max-probability:0.99999,0.999)"};
  for (const std::string& policy : policies) {
    const Graph raw = onnx::read(bytes_of(save_onnx(m, ExitForm::nested_if, {{"offramp.policy", policy}})));
    Session expected(m, parse_policy(policy));
    std::array<int, 3> taken{};
    for (Index i = 0; i < 40; ++i) {
      const auto sample = std::span(x).subspan(static_cast<std::size_t>(i) * 192, 192);
      const Prediction q = expected.predict(sample)[0];
      ++taken[static_cast<std::size_t>(q.exit)];
      const std::vector<Tensor> in{Tensor::of<float>({1, 3, 8, 8}, sample)};
      const Operators operators;
      const auto results = evaluate(raw, in, {operators, kernel::kernels_for(best_isa()), {}});
      const auto y = results[0].values<float>();
      if (policy.starts_with("last-ensemble") && q.exit == 2) {  // the scores are logarithms of probabilities
        for (std::size_t c = 0; c < y.size(); ++c)
          EXPECT_NEAR(std::exp(y[c]), q.probabilities[c], 1e-5f) << policy << i;
        continue;
      }
      const Tensor own = m.run(in)[static_cast<std::size_t>(q.exit)];
      for (std::size_t c = 0; c < y.size(); ++c)
        EXPECT_NEAR(y[c], own.values<float>()[c], 1e-5f * (1 + std::fabs(y[c]))) << policy << i;
    }
    EXPECT_LT(*std::max_element(taken.begin(), taken.end()), 40) << policy;  // not all at one exit
  }
}

TEST(Onnx, ConditionsAreReadWhereNoPolicyIsNamed) {
  const Model m(test::residual_network());
  const std::string file = save_onnx(m, ExitForm::nested_if, {{"offramp.policy", "max-probability:0.5,0.625"}});
  Graph raw = onnx::read(bytes_of(file));
  raw.metadata.clear();
  const std::string bare = onnx::write(raw);
  const Model again = load_onnx(bytes_of(bare));
  EXPECT_EQ(again.metadata().at("offramp.policy"), "max-probability:0.500000,0.625000");
}

TEST(Onnx, NestedExitsLeaveOutWhatIsNeverTaken) {
  const Model m(test::residual_network());
  const Model again =
      load_onnx(bytes_of(save_onnx(m, ExitForm::nested_if, {{"offramp.policy", "max-probability:inf,0.6"}})));
  EXPECT_EQ(again.exit_count(), 2);
  EXPECT_THROW(save_onnx(m, ExitForm::nested_if, {{"offramp.policy", "max-probability:inf"}}), Error);
  EXPECT_THROW(save_onnx(m, ExitForm::nested_if, {{"offramp.policy", "entropy:0.1"}}), Error);
  EXPECT_THROW(save_onnx(m, ExitForm::nested_if), Error);
}

TEST(Onnx, ErrorsNameTheFile) {
  try {
    load_onnx("no/such/file.onnx");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.file(), "no/such/file.onnx");
  }
}

TEST(Onnx, FashionNetworkLoads) {
  const Model m = load_onnx(OFFRAMP_FASHION_MODEL);
  EXPECT_EQ(m.exit_count(), 5);
  EXPECT_EQ(m.class_count(), 10);
  EXPECT_NO_THROW(policy_of(m).validate(5, 10));
}

}  // namespace
}  // namespace offramp

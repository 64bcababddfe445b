#include "offramp/policy/parse.hpp"

#include <gtest/gtest.h>

namespace offramp {

TEST(ParsePolicy, UnderstandsEveryKind) {
  for (const char* text : {"never",
                           "always",
                           "always:1",
                           "max-probability:0.9",
                           "max-probability:0.9,0.8,inf",
                           "entropy:0.3",
                           "margin:0.5",
                           "agreement:0.8",
                           "patience:2",
                           "flops:25e6",
                           "deadline:0.002",
                           "temperature(1.3,1.2,1;max-probability:0.9)",
                           "ensemble(max-probability:0.9)",
                           "last-ensemble(max-probability:0.9)",
                           "ensemble(1,1,2;margin:0.4)",
                           "and(patience:1;max-probability:0.6)",
                           "or(and(always;never);not(entropy:0.1);margin:0.2)",
                           "max-probability-per-class:2:0.5,0.6",
                           "gate(1,2,3,4,5,6,7;0.5)",
                           "route(2;0.3;max-probability:0.9)",
                           "route(3;-inf,0.2;ensemble(margin:0.4))"}) {
    EXPECT_NO_THROW(parse_policy(text)) << text;
  }
}

TEST(ParsePolicy, QuotesWhatItDoesNotUnderstand) {
  for (const char* text : {"",
                           "max-probability",
                           "max-probability:",
                           "max-probability:x",
                           "max-probability:0.9,",
                           "max-probability:nan",
                           "entropy:1e999",
                           "sometimes",
                           "and(always)",
                           "and(always;never",
                           "not(a;b)",
                           "temperature(1)",
                           "gate(1,2;0.5)",
                           "never:1",
                           "always:x",
                           "route(0;0.3;always)",
                           "route(1.5;0.3;always)",
                           "route(2;x;always)",
                           "route(2;always)",
                           "not(route(2;0.3;always))",
                           "max-probability-per-class:0:1",
                           "max-probability-per-class:2:1,2,3"}) {
    EXPECT_THROW(parse_policy(text), Error) << text;
  }
  std::string deep;
  for (int i = 0; i < 1000; ++i) deep += "not(";
  EXPECT_THROW(parse_policy(deep + "always" + std::string(1000, ')')), Error);
}

TEST(ParsePolicy, NumbersReadBackTheSame) {
  const std::vector<float> t{0.1f, 0.9999999f, 1.0f / 3, std::numeric_limits<float>::infinity()};
  const std::string text = policy_text("max-probability", t);
  EXPECT_EQ(detail::parse_numbers(std::string_view(text).substr(text.find(':') + 1), text), t);
}

}  // namespace offramp

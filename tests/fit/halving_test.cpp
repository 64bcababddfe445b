#include "offramp/fit/halving.hpp"

#include <gtest/gtest.h>

namespace offramp::fit {
namespace {

TEST(Halving, ShareAloneStopsWhereTooManyAnswersDiffer) {
  const std::vector<SureAnswer> answers{{0.2f, false}, {0.9f, true}, {0.8f, false}, {0.7f, true}, {0.6f, true}};
  EXPECT_DOUBLE_EQ(share_alone(answers, 0), 0.2);
  EXPECT_DOUBLE_EQ(share_alone(answers, 0.2), 0.8);  // one of five may differ
  EXPECT_DOUBLE_EQ(share_alone(answers, 0.4), 1.0);
  EXPECT_DOUBLE_EQ(share_alone({}, 0.1), 0.0);
}

TEST(Halving, WhoIsEquallySureLeavesTogether) {
  const std::vector<SureAnswer> answers{{0.9f, true}, {0.8f, true}, {0.8f, false}, {0.8f, true}};
  EXPECT_DOUBLE_EQ(share_alone(answers, 0), 0.25);
  EXPECT_DOUBLE_EQ(share_alone(answers, 0.25), 1.0);
}

TEST(Halving, AnswersAreTakenFromScores) {
  Targets t;
  t.n = 2, t.classes = 3;
  t.answers = {0, 2};
  std::vector<SureAnswer> answers;
  add_answers(std::vector<float>{5, 0, 0, 0, 1, 0}, t, answers);
  ASSERT_EQ(answers.size(), 2u);
  EXPECT_TRUE(answers[0].same);
  EXPECT_FALSE(answers[1].same);
  EXPECT_GT(answers[0].sureness, 0.9f);
}

TEST(Halving, TheBestOfEachPlaceStay) {
  const std::vector<Contender> all{{0, 0, 1.0}, {1, 0, 3.0}, {2, 0, 2.0}, {3, 1, -1.0}, {4, 2, 1.0}, {5, 2, 1.0}};
  EXPECT_EQ(losers(all, 2), (std::vector<std::size_t>{0}));
  EXPECT_EQ(losers(all, 1), (std::vector<std::size_t>{2, 0, 5}));  // among equals the first stays
}

}  // namespace
}  // namespace offramp::fit

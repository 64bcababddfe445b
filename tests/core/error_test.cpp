#include "offramp/core/error.hpp"

#include <gtest/gtest.h>

namespace offramp {

TEST(Error, NamesFileNodeAndOperator) {
  const Error e = Error("expected 3, found 4").at_node("conv1", "Conv").in_file("net.onnx");
  EXPECT_STREQ(e.what(), "net.onnx: Conv node 'conv1': expected 3, found 4");
  EXPECT_EQ(e.node(), "conv1");
  EXPECT_EQ(e.detail(), "expected 3, found 4");
}

TEST(Error, KeepsTheInnermostName) {
  const Error e = Error("x").at_node("inner", "Relu").at_node("outer", "If").in_file("a").in_file("b");
  EXPECT_EQ(e.op(), "Relu");
  EXPECT_EQ(e.file(), "a");
}

}  // namespace offramp

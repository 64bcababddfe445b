#include "offramp/layer/conv.hpp"

#include <gtest/gtest.h>

#include "offramp/kernel/dispatch.hpp"
#include "reference.hpp"

namespace offramp {
namespace {

// Runs the ONNX operator on NCHW data, as a file would, with scratch memory that holds nothing but NaN.
std::vector<float> run_conv(const test::ConvCase& c, const Tensor& x, const Tensor& w, const Tensor& b,
                            const kernel::Kernels& kernels, Cost* cost = nullptr, ThreadPool* pool = nullptr,
                            const ConvMethod* method = nullptr) {
  ConvOperation op(c.node(), 13);
  const std::vector<TensorView> in{x.view(), w.view(), b.empty() ? TensorView{} : b.view()};
  std::vector<TensorView> out(1);
  op.infer(in, out);
  PrepareOptions how{kernels};
  if (pool) how.threads = pool->threads();
  how.conv_method = method, how.bf16 = method && method->halves;
  op.prepare(in, how);
  Tensor y(out[0].type, out[0].shape);
  out[0] = y.view();
  const std::size_t size = op.scratch_bytes(in, out, how.threads);
  const auto scratch = allocate_aligned(size);
  std::memset(scratch.get(), 0xff, size);
  EXPECT_TRUE(op.forward({in, out, scratch.get(), kernels, pool ? ExecutorRef(*pool) : ExecutorRef()}));
  if (cost) *cost = op.cost(in, out);
  const auto v = y.values<float>();
  return {v.begin(), v.end()};
}

// Random shapes and options: every kind of convolution that the plan tells apart, by one thread and by two.
TEST(Conv, EqualsSevenLoopsOverRandomCases) {
  std::mt19937 engine(7);
  ThreadPool pool(2);
  const auto pick = [&](std::initializer_list<Index> from) { return *(from.begin() + engine() % from.size()); };
  for (int trial = 0; trial < 250; ++trial) {
    test::ConvCase c;
    c.batch = pick({1, 2, 3});
    c.h = pick({1, 5, 7, 12}), c.w = pick({3, 8, 13, 70});
    c.kh = std::min(c.h, pick({1, 2, 3, 5})), c.kw = pick({1, 3});
    c.sh = pick({1, 2}), c.sw = pick({1, 2, 3});
    c.dh = c.h > 2 * c.kh ? pick({1, 2}) : 1, c.dw = c.kw == 3 && c.w > 6 ? pick({1, 2}) : 1;
    c.top = pick({0, 1}), c.bottom = pick({0, 1, 2}), c.left = pick({0, 1}), c.right = pick({0, 1});
    const Index kind = pick({0, 1, 2, 3});
    c.in = kind == 0 ? pick({1, 3}) : kind == 1 ? pick({8, 17, 32}) : kind == 2 ? 12 : 6;
    c.group = kind == 2 ? 12 : kind == 3 ? pick({2, 3}) : 1;
    c.out = kind == 2 ? 12 : kind == 3 ? 6 * pick({1, 3}) : pick({1, 5, 16, 40});
    if (c.out_h() < 1 || c.out_w() < 1) continue;
    const Tensor x = test::random_tensor({c.batch, c.in, c.h, c.w}, 1 + static_cast<unsigned>(trial)),
                 w = test::random_tensor({c.out, c.in / c.group, c.kh, c.kw}, 2);
    const Tensor b = trial % 2 ? test::random_tensor({c.out}, 3) : Tensor();
    const auto expected =
        test::conv2d(c, x.values<float>(), w.values<float>(), b.empty() ? std::span<const float>() : b.values<float>());
    for (const Isa isa : available_isas()) {
      Cost cost;
      const auto y = run_conv(c, x, w, b, kernel::kernels_for(isa), &cost);
      ASSERT_LT(test::relative_error(y, expected), 1e-5) << c.text() << " on " << name_of(isa);
      const auto shared = run_conv(c, x, w, b, kernel::kernels_for(isa), nullptr, &pool);
      ASSERT_LT(test::relative_error(shared, expected), 1e-5) << c.text() << " on " << name_of(isa) << ", two threads";
      if (kernel::kernels_for(isa).bf16) {
        constexpr ConvMethod halves{0, true};
        const auto rounded = run_conv(c, x, w, b, kernel::kernels_for(isa), nullptr, nullptr, &halves);
        ASSERT_LT(test::relative_error(rounded, expected), 0.02) << c.text() << " on " << name_of(isa) << ", halves";
      }
      ASSERT_EQ(cost.macs, static_cast<Index>(expected.size()) * c.in / c.group * c.kh * c.kw);
      ASSERT_EQ(cost.flops, 2 * cost.macs + (b.empty() ? 0 : static_cast<Index>(expected.size())));
    }
  }
}

// Few input channels: whole tiles of a line of outputs, the last one reaching back, and lines that are too short.
TEST(Conv, FirstLayersEqualSevenLoops) {
  for (const Index channels : {1, 3, 4}) {
    for (const Index stride : {1, 2}) {
      for (const Index width : {5, 12, 16, 33, 45}) {
        for (const Index out : {16, 32, 40, 64}) {
          test::ConvCase c;
          c.batch = 2, c.in = channels, c.out = out, c.h = 6, c.w = width;
          c.kh = c.kw = width % 2 ? 5 : 3;
          c.sh = c.sw = stride, c.top = c.bottom = c.left = c.right = 1;
          const Tensor x = test::random_tensor({c.batch, c.in, c.h, c.w}, 1),
                       w = test::random_tensor({c.out, c.in, c.kh, c.kw}, 2), b = test::random_tensor({c.out}, 3);
          const auto expected = test::conv2d(c, x.values<float>(), w.values<float>(), b.values<float>());
          for (const Isa isa : available_isas()) {
            const auto y = run_conv(c, x, w, b, kernel::kernels_for(isa));
            ASSERT_LT(test::relative_error(y, expected), 1e-5) << c.text() << " on " << name_of(isa);
          }
        }
      }
    }
  }
}

TEST(Conv, SaysWhatDoesNotFit) {
  test::ConvCase c;
  c.in = 3, c.out = 4, c.h = 5, c.w = 5, c.kh = 3, c.kw = 3;
  ConvOperation op(c.node(), 13);
  const Tensor x = test::random_tensor({1, 3, 5, 5}, 1), w = test::random_tensor({4, 2, 3, 3}, 2);
  std::vector<TensorView> out(1);
  try {
    op.infer(std::vector<TensorView>{x.view(), w.view()}, out);
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("[4,2,3,3]"), std::string::npos);
    EXPECT_NE(std::string(e.what()).find("[1,3,5,5]"), std::string::npos);
  }
  const Tensor small = test::random_tensor({1, 3, 2, 2}, 1), good = test::random_tensor({4, 3, 3, 3}, 2);
  EXPECT_THROW(op.infer(std::vector<TensorView>{small.view(), good.view()}, out), Error);
}

}  // namespace
}  // namespace offramp

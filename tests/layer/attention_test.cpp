#include "offramp/layer/attention.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "offramp/core/error.hpp"
#include "offramp/kernel/dispatch.hpp"
#include "reference.hpp"

namespace offramp {
namespace {

Node attention_node(const std::vector<Index>& q, const std::vector<Index>& k, const std::vector<Index>& v,
                    const std::vector<Index>& y, float scale) {
  Node n;
  n.set("q_axes", q);
  n.set("k_axes", k);
  n.set("v_axes", v);
  n.set("y_axes", y);
  n.set("scale", scale);
  return n;
}

struct Found {
  Shape shape;
  std::vector<float> values;
};

Found run(const Node& node, const std::vector<Tensor>& in, Isa isa, Index threads = 1) {
  AttentionOperation op(node, 13);
  std::vector<TensorView> views, out(1);
  for (const Tensor& t : in) views.push_back(t.view());
  op.infer(views, out);
  const kernel::Kernels& kernels = kernel::kernels_for(isa);
  op.prepare(views, {kernels});
  Tensor y(DType::f32, out[0].shape), scratch(DType::u8, {static_cast<Index>(op.scratch_bytes(views, out, threads))});
  out[0].data = y.mutable_data();
  ThreadPool pool(threads);
  const ExecutorRef executor = threads > 1 ? ExecutorRef(pool) : ExecutorRef();
  EXPECT_TRUE(op.forward({views, out, static_cast<std::byte*>(scratch.mutable_data()), kernels, executor}));
  const auto values = y.values<float>();
  return {y.shape(), {values.begin(), values.end()}};
}

// Plain attention in double over [heads, rows, depth], [heads, keys, depth], [heads, keys, width].
std::vector<double> reference(std::span<const float> q, std::span<const float> k, std::span<const float> v, Index heads,
                              Index rows, Index keys, Index depth, Index width, double scale, const float* mask) {
  std::vector<double> y;
  for (Index h = 0; h < heads; ++h) {
    for (Index r = 0; r < rows; ++r) {
      std::vector<double> s(static_cast<std::size_t>(keys));
      double largest = -std::numeric_limits<double>::infinity(), sum = 0;
      for (Index c = 0; c < keys; ++c) {
        double& x = s[static_cast<std::size_t>(c)];
        for (Index i = 0; i < depth; ++i)
          x += static_cast<double>(q[static_cast<std::size_t>((h * rows + r) * depth + i)]) *
               static_cast<double>(k[static_cast<std::size_t>((h * keys + c) * depth + i)]);
        x = x * scale + (mask ? static_cast<double>(mask[c]) : 0);
        largest = std::max(largest, x);
      }
      for (double& x : s) sum += x = std::exp(x - largest);
      for (Index i = 0; i < width; ++i) {
        double x = 0;
        for (Index c = 0; c < keys; ++c)
          x += s[static_cast<std::size_t>(c)] *
               static_cast<double>(v[static_cast<std::size_t>((h * keys + c) * width + i)]);
        y.push_back(x / sum);
      }
    }
  }
  return y;
}

TEST(Attention, EqualsItsDefinitionOnEveryIsa) {
  const std::vector<Index> plain{0, 1, 2};
  for (const Isa isa : available_isas()) {
    for (const auto& [rows, keys, depth, width] : std::vector<std::array<Index, 4>>{
             {1, 1, 1, 1}, {5, 3, 7, 2}, {17, 40, 16, 24}, {230, 257, 8, 20}, {3, 5000, 4, 4}}) {
      const Index heads = 3;
      const Tensor q = test::random_tensor({heads, rows, depth}, 1), k = test::random_tensor({heads, keys, depth}, 2),
                   v = test::random_tensor({heads, keys, width}, 3);
      Tensor mask = test::random_tensor({keys}, 4);
      static_cast<float*>(mask.mutable_data())[keys / 2] = keys > 1 ? -std::numeric_limits<float>::infinity() : 0;
      for (const bool masked : {false, true}) {
        const auto expected = reference(q.values<float>(), k.values<float>(), v.values<float>(), heads, rows, keys,
                                        depth, width, 0.5, masked ? mask.view().f32() : nullptr);
        std::vector<Tensor> in{q, k, v};
        if (masked) in.push_back(mask);
        for (const Index threads : {1, 2, 5}) {
          const Found y = run(attention_node(plain, plain, plain, plain, 0.5f), in, isa, threads);
          EXPECT_EQ(y.shape, (Shape{heads, rows, width}));
          EXPECT_LT(test::relative_error(y.values, expected), 2e-6) << name_of(isa) << " " << rows << "x" << keys;
        }
      }
    }
  }
}

// Heads between tokens and channels, as most graphs have them, and keys with their channels in front.
TEST(Attention, ReadsAndWritesThroughPermutations) {
  const Index heads = 2, rows = 9, keys = 21, depth = 8, width = 5;
  const auto q = test::random_floats(heads * rows * depth, 1), k = test::random_floats(heads * keys * depth, 2),
             v = test::random_floats(heads * keys * width, 3);
  const auto expected = reference(q, k, v, heads, rows, keys, depth, width, 1, nullptr);
  const auto moved = [&](const std::vector<float>& x, Index n, Index c, bool channels_first) {
    std::vector<float> y(x.size());
    for (Index h = 0; h < heads; ++h) {
      for (Index i = 0; i < n; ++i) {
        for (Index j = 0; j < c; ++j)
          y[static_cast<std::size_t>(channels_first ? (j * heads + h) * n + i : (i * heads + h) * c + j)] =
              x[static_cast<std::size_t>((h * n + i) * c + j)];
      }
    }
    return y;
  };
  const std::vector<Index> tokens_first{1, 0, 2};
  const Found y = run(attention_node(tokens_first, {1, 2, 0}, tokens_first, tokens_first, 1),
                      {Tensor::of<float>({rows, heads, depth}, moved(q, rows, depth, false)),
                       Tensor::of<float>({depth, heads, keys}, moved(k, keys, depth, true)),
                       Tensor::of<float>({keys, heads, width}, moved(v, keys, width, false))},
                      best_isa());
  EXPECT_EQ(y.shape, (Shape{rows, heads, width}));
  const std::vector<float> in_order(expected.begin(), expected.end());
  const auto turned = moved(in_order, rows, width, false);
  EXPECT_LT(test::relative_error(y.values, std::vector<double>(turned.begin(), turned.end())), 2e-6);
}

TEST(Attention, NoKeysAddUpToNothing) {
  const std::vector<Index> plain{0, 1, 2};
  const Found y = run(attention_node(plain, plain, plain, plain, 1),
                      {test::random_tensor({2, 3, 4}, 1), Tensor(DType::f32, {2, 0, 4}), Tensor(DType::f32, {2, 0, 5})},
                      best_isa());
  EXPECT_EQ(y.values, std::vector<float>(30, 0.0f));
}

TEST(Attention, OperandsThatDoNotFitAreErrors) {
  const std::vector<Index> plain{0, 1, 2};
  const Tensor q = test::random_tensor({2, 3, 4}, 1), k = test::random_tensor({2, 5, 4}, 2),
               v = test::random_tensor({2, 5, 6}, 3);
  const Node node = attention_node(plain, plain, plain, plain, 1);
  const auto other = [](const Shape& s) { return test::random_tensor(s, 4); };
  EXPECT_THROW(run(node, {q, other({2, 5, 3}), v}, best_isa()), Error);
  EXPECT_THROW(run(node, {q, k, other({2, 4, 6})}, best_isa()), Error);
  EXPECT_THROW(run(node, {q, other({1, 5, 4}), v}, best_isa()), Error);
  EXPECT_THROW(run(node, {q, k, other({5, 6})}, best_isa()), Error);
  EXPECT_THROW(run(node, {q, k, v, other({2, 3, 4})}, best_isa()), Error);
  EXPECT_THROW(run(node, {q, k}, best_isa()), Error);
  for (const std::vector<Index>& axes : std::vector<std::vector<Index>>{{}, {0, 1}, {0, 1, 1}, {0, 1, 3}, {-1, 0, 1}})
    EXPECT_THROW(run(attention_node(plain, axes, plain, plain, 1), {q, k, v}, best_isa()), Error);
}

}  // namespace
}  // namespace offramp

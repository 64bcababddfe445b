#include "offramp/graph/model.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "batches.hpp"
#include "graphs.hpp"

namespace offramp {
namespace {

TEST(Model, PreparedEqualsNodeByNode) {
  for (const Isa isa : available_isas()) {
    ModelOptions options;
    options.isa = isa;
    const Model m(test::residual_network(), options);
    ASSERT_TRUE(m.has_plan()) << m.why_not();
    for (const Index batch : {1, 2, 7}) {
      const std::vector<Tensor> in{test::random_tensor({batch, 3, 8, 8}, static_cast<unsigned>(batch))};
      const auto fast = m.run(in), plain = m.run_graph(in);
      for (std::size_t i = 0; i < 3; ++i) {
        const auto v = plain[i].values<float>();
        EXPECT_LT(test::relative_error(fast[i].values<float>(), std::vector<double>(v.begin(), v.end())), 1e-5);
      }
    }
  }
}

TEST(Model, FindsExitsInOrderOfDepth) {
  Graph g = test::residual_network();
  std::swap(g.outputs[0], g.outputs[2]);  // the file's order does not matter
  const Model m(g);
  ASSERT_EQ(m.exit_count(), 3);
  EXPECT_EQ(m.exits()[0].name, "exit_0");
  EXPECT_EQ(m.exits()[2].name, "logits");
  EXPECT_EQ(m.class_count(), 4);
  EXPECT_LT(m.exits()[0].upto.flops, m.exits()[1].upto.flops);
  EXPECT_EQ(m.exits()[2].head, Cost{});
  // Every layer belongs to one stage or one head, and their costs add up.
  Cost sum;
  for (const ExitInfo& e : m.exits()) sum += e.stage + e.head;
  EXPECT_EQ(sum, m.total_cost());
}

TEST(Model, MetadataNamesExits) {
  Graph g = test::residual_network();
  g.metadata["offramp.exits"] = "exit_1,logits";
  const Model m(g);
  ASSERT_EQ(m.exit_count(), 2);
  EXPECT_EQ(m.exits()[0].name, "exit_1");
}

TEST(Model, BatchesThatTheGraphFixesRunSampleBySample) {
  test::Builder b;
  const auto x = b.input("x", {1, 4});
  const auto shape = b.constant(Tensor::of<Index>({2}, std::vector<Index>{1, 4}));  // a Reshape that fixes the batch
  b.output(b.node("Relu", {b.node("Reshape", {x, shape})}), "y");
  const Model m(b.g);
  ASSERT_TRUE(m.has_plan()) << m.why_not();
  EXPECT_TRUE(m.runs_single_samples());
  const std::vector<Tensor> in{Tensor::of<float>({2, 4}, std::vector<float>{1, -1, 2, -2, 3, -3, 4, -4})};
  const auto y = m.run(in);
  EXPECT_EQ(y[0].shape(), (Shape{2, 4}));
  EXPECT_EQ(y[0].values<float>()[6], 4.0f);
  EXPECT_EQ(y[0].values<float>()[5], 0.0f);
}

TEST(Model, SaysWhatIsWrongWithInputs) {
  const Model m(test::residual_network());
  const auto message = [&](std::vector<Tensor> in) {
    try {
      m.run(in);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  EXPECT_EQ(message({test::random_tensor({1, 3, 9, 8}, 1)}),
            "input 'input': expected shape [1,3,8,8], found [1,3,9,8]");
  EXPECT_EQ(message({Tensor(DType::i64, {1, 3, 8, 8})}), "input 'input': expected float32, found int64");
  EXPECT_EQ(message({}), "expected 1 inputs, found 0");
  EXPECT_EQ(message({Tensor(DType::f32, {0, 3, 8, 8})}), "the batch is empty");
}

TEST(Model, OutputsThatAreNoClassifierRunButDoNotPredict) {
  test::Builder b;
  b.output(b.node("Relu", {b.input("x", {dynamic, 3, 4, 4})}), "a");
  b.output(b.node("Shape", {b.g.inputs[0]}), "b");
  const Model m(b.g);
  EXPECT_EQ(m.exit_count(), 0);
  EXPECT_THROW(m.make_state(1), Error);
  EXPECT_EQ(m.run(std::vector<Tensor>{test::random_tensor({2, 3, 4, 4}, 1)}).size(), 2u);
}

TEST(Model, MemoryIsSharedBetweenLayersAndLimited) {
  ModelOptions plain;
  plain.winograd_tile = 0;  // without its transformed tiles
  const Model m(test::residual_network(), plain);
  Index all = 0;
  for (const LayerInfo& l : m.layers()) all += l.output.count() * 4;
  EXPECT_LT(m.memory_bytes(1), all);
  ModelOptions tight;
  tight.limits.memory_bytes = 1000;
  EXPECT_FALSE(Model(test::residual_network(), tight).has_plan());
}

// Values of more than the cache holds make a batch go through in chunks; the answers are those of single samples.
TEST(Model, LargeBatchesGoThroughInChunks) {
  test::Builder b;
  b.g.opset = 13;
  const std::vector<Index> pads{1, 1, 1, 1}, three{3, 3};
  auto x = b.input("input", {dynamic, 3, 96, 96});
  x = b.node("Conv", {x, b.constant({48, 3, 3, 3}, 1)}, {{"kernel_shape", three}, {"pads", pads}});
  const auto wide = b.node("Relu", {x});
  x = b.node("MaxPool", {wide}, {{"kernel_shape", three}, {"strides", std::vector<Index>{4, 4}}});
  x = b.node("Conv", {x, b.constant({48, 48, 3, 3}, 2)}, {{"kernel_shape", three}, {"pads", pads}});
  x = b.node("Flatten", {b.node("GlobalAveragePool", {x})}, {{"axis", Index{1}}});
  b.output(b.node("Gemm", {x, b.constant({5, 48}, 3)}, {{"transB", Index{1}}}), "logits");
  for (const Index threads : {1, 2}) {
    ModelOptions o;
    if (threads > 1) o.pool = std::make_shared<ThreadPool>(threads);
    const Model m(b.g, o);
    constexpr Index batch = 11;
    EXPECT_LT(m.memory_bytes(batch), batch * m.memory_bytes(1) * 2 / 3);
    test::expect_equal_alone(m, test::random_tensor({batch, 3, 96, 96}, 9));
  }
}

// Large transposed weights are read where they are when few samples are expected, and packed when many are.
TEST(Model, LargeDenseLayersNeedOneCopyOfTheirWeights) {
  test::Builder b;
  b.g.opset = 13;
  const Index k = 1100, n = 1003;
  auto x = b.node("Gemm", {b.input("input", {dynamic, k}), b.constant({n, k}, 1), b.constant({n}, 2)},
                  {{"transB", Index{1}}});
  b.output(b.node("Gemm", {b.node("Relu", {x}), b.constant({7, n}, 3)}, {{"transB", Index{1}}}), "logits");
  const Tensor in = test::random_tensor({17, k}, 4);
  ModelOptions o;
  o.batch = 64;
  const Model packed(b.g, o);
  EXPECT_EQ(packed.layers()[0].algorithm, "gemm");
  const Tensor expected = packed.run(std::vector<Tensor>{in})[0];
  o.batch = 1;
  for (const Index threads : {1, 2}) {
    if (threads > 1) o.pool = std::make_shared<ThreadPool>(threads);
    const Model rows(b.g, o);
    EXPECT_EQ(rows.layers()[0].algorithm, "gemm of rows");
    const Tensor found = rows.run(std::vector<Tensor>{in})[0];
    for (std::size_t i = 0; i < expected.values<float>().size(); ++i)
      EXPECT_NEAR(found.values<float>()[i], expected.values<float>()[i], 1e-2) << i;
    test::expect_equal_alone(rows, in);
  }
}

// Without its graph a model has its packed weights alone, and answers the same.
TEST(Model, NeedsItsGraphOnlyToBeWritten) {
  Graph g = test::residual_network();
  g.metadata["author"] = "us";
  for (const Isa isa : available_isas()) {
    ModelOptions options;
    options.isa = isa;
    const Model whole(g, options);
    options.keep_graph = false;
    const Model bare(g, options);
    EXPECT_EQ(bare.exits().size(), whole.exits().size());
    EXPECT_EQ(bare.total_cost(), whole.total_cost());
    EXPECT_EQ(bare.parameters(), whole.parameters());
    EXPECT_EQ(bare.metadata(), whole.metadata());
    for (const Index batch : {1, 7}) {
      const std::vector<Tensor> in{test::random_tensor({batch, 3, 8, 8}, 3)};
      const auto expected = whole.run(in), found = bare.run(in);
      for (std::size_t i = 0; i < expected.size(); ++i)
        EXPECT_EQ(std::memcmp(found[i].data(), expected[i].data(), expected[i].bytes()), 0) << batch << ' ' << i;
    }
    EXPECT_THROW(static_cast<void>(bare.graph()), Error);
    EXPECT_THROW(bare.run_graph(std::vector<Tensor>{test::random_tensor({1, 3, 8, 8}, 3)}), Error);
  }
}

TEST(Model, KeepsWeightsThatAreReadElsewhere) {
  ModelOptions options;
  options.keep_graph = false;
  test::Builder b;
  b.g.opset = 13;
  const Index n = 12;
  const auto x = b.input("input", {dynamic, n}), w = b.constant({n, n}, 1);
  const auto both = b.node("MatMul", {b.node("MatMul", {x, w}), w});  // both pack it
  b.output(b.node("Concat", {both, b.node("MatMul", {w, b.node("Transpose", {x})})}, {{"axis", Index{0}}}), "y");
  const Model m(b.g, options);
  const std::vector<Tensor> in{test::random_tensor({n, n}, 2)};
  const Tensor found = m.run(in)[0], expected = Model(b.g).run(in)[0];
  EXPECT_EQ(std::memcmp(found.data(), expected.data(), expected.bytes()), 0);
}

TEST(Model, KeepsTheGraphWhereThereIsNoPlan) {
  ModelOptions options;
  options.keep_graph = false;
  test::Builder b;
  const auto x = b.input("x", {});
  b.g[x].has_shape = false;
  b.output(b.node("Relu", {x}), "y");
  const Model m(b.g, options);
  EXPECT_FALSE(m.has_plan());
  EXPECT_EQ(m.run(std::vector<Tensor>{Tensor::of<float>({2}, std::vector<float>{-1, 1})})[0].values<float>()[1], 1.0f);
  EXPECT_EQ(m.graph().nodes.size(), 2u);
  options.limits.memory_bytes = 1000;  // found out when the weights are packed: then nothing is left to run
  EXPECT_THROW(Model(test::residual_network(), options), Error);
}

// Where weights are few, chunks are so small that their values stay in the L2 of the threads.
TEST(Model, FewWeightsMakeSmallChunks) {
  test::Builder b;
  b.g.opset = 13;
  const std::vector<Index> pads{1, 1, 1, 1}, three{3, 3};
  auto x = b.input("input", {dynamic, 16, 32, 32});
  for (unsigned i = 0; i < 3; ++i) {
    const auto y = b.node("Conv", {x, b.constant({16, 16, 3, 3}, i)}, {{"kernel_shape", three}, {"pads", pads}});
    x = b.node("Relu", {b.node("Add", {x, y})});
  }
  x = b.node("Conv", {x, b.constant({64, 16, 3, 3}, 4)},
             {{"kernel_shape", three}, {"strides", std::vector<Index>{2, 2}}});
  x = b.node("Flatten", {b.node("GlobalAveragePool", {x})}, {{"axis", Index{1}}});
  b.output(b.node("Gemm", {x, b.constant({5, 64}, 5)}, {{"transB", Index{1}}}), "logits");
  for (const Index threads : {1, 2}) {
    ModelOptions o;
    if (threads > 1) o.pool = std::make_shared<ThreadPool>(threads);
    const Model m(b.g, o);
    constexpr Index batch = 12;
    Model::State s = m.make_layer_state(batch);
    std::vector<int> runs(m.layers().size(), 0);
    EXPECT_TRUE(m.run_layers(s, [&](std::size_t i, const auto& run) {
      ++runs[i];
      return run();
    }));
    EXPECT_GT(*std::max_element(runs.begin(), runs.end()), batch / 3 / threads);
    EXPECT_GT(std::count(runs.begin(), runs.end(), 1), 0);  // the last product sees all samples
    test::expect_equal_alone(m, test::random_tensor({batch, 16, 32, 32}, 9));
  }
}

// Threads share the samples of a batch: each goes through all layers with its own, and the remainder is done together.
TEST(Model, ThreadsShareTheSamplesOfABatch) {
  ModelOptions o;
  o.batch = 4;
  const Model alone(test::residual_network(), o);
  for (const Index threads : {2, 3}) {
    o.batch = 4 * threads;  // four for each: the same algorithms
    o.pool = std::make_shared<ThreadPool>(threads);
    const Model m(test::residual_network(), o);
    constexpr Index most = 11;
    Model::State one = alone.make_state(most), s = m.make_state(most);
    for (Index batch = most; batch > 0; --batch) {  // one state for all of them, as in a session
      const auto x = test::random_floats(batch * 192, static_cast<unsigned>(batch));
      const std::vector<Tensor> in{Tensor::of<float>({batch, 3, 8, 8}, x)};
      const auto expected = alone.run(in), found = m.run(in);
      for (std::size_t i = 0; i < expected.size(); ++i)
        EXPECT_EQ(std::memcmp(found[i].data(), expected[i].data(), expected[i].bytes()), 0);
      one.reset_counts(), s.reset_counts();
      alone.load(one, x.data(), batch);
      m.load(s, x.data(), batch);
      for (Index k = 0; k < m.exit_count(); ++k) {
        EXPECT_TRUE(alone.run_stage(one, k) && m.run_stage(s, k) && alone.run_head(one, k) && m.run_head(s, k));
        EXPECT_EQ(std::memcmp(m.logits(s, k), alone.logits(one, k),
                              static_cast<std::size_t>(batch * m.class_count()) * sizeof(float)),
                  0)
            << threads << ' ' << batch << ' ' << k;
      }
      EXPECT_TRUE(std::equal(s.counts().begin(), s.counts().end(), one.counts().begin(), one.counts().end()));
      std::vector<Index> samples(m.layers().size(), 0);  // that are watched: those of one thread, and the remainder
      m.load(s, x.data(), batch);
      EXPECT_TRUE(m.run_layers(s, [&](std::size_t i, const auto& layer) {
        samples[i] += layer.run.out[0].shape[0];
        return layer();
      }));
      EXPECT_EQ(*std::max_element(samples.begin(), samples.end()), batch / threads + batch % threads);
    }
  }
}

// A layer that does little more than to read its weights is done by all threads together until there are many samples.
TEST(Model, ThreadsReadLargeWeightsTogether) {
  test::Builder b;
  b.g.opset = 13;
  const Index k = 300;
  const auto x = b.node("Gemm", {b.input("input", {dynamic, k}), b.constant({k, k}, 1)});
  b.output(b.node("Gemm", {b.node("Relu", {x}), b.constant({k, 7}, 3)}), "logits");
  ModelOptions o;
  o.pool = std::make_shared<ThreadPool>(2);
  const Model m(b.g, o);
  for (const Index batch : {2, 7, 8, 21}) {
    Model::State s = m.make_state(batch);
    Index samples = 0;
    EXPECT_TRUE(m.run_layers(s, [&](std::size_t i, const auto& layer) {
      samples += i == 0 ? layer.run.out[0].shape[0] : 0;
      return layer();
    }));
    EXPECT_EQ(samples, batch < 8 ? batch : batch / 2 + batch % 2);
    test::expect_equal_alone(m, test::random_tensor({batch, k}, 9));
  }
}

TEST(Model, NoThreadsErrorIsLost) {
  test::Builder b;
  b.g.opset = 13;
  const auto rows = b.input("rows", {dynamic, 1}, DType::i64);
  b.output(b.node("Gather", {b.constant({5, 4}, 1), rows}, {{"axis", Index{0}}}), "y");
  ModelOptions o;
  o.pool = std::make_shared<ThreadPool>(2);
  const Model m(b.g, o);
  std::vector<std::int64_t> good{0, 1, 2, 3, 4};
  EXPECT_NO_THROW(m.run(std::vector<Tensor>{Tensor::of<std::int64_t>({5, 1}, good)}));
  for (std::size_t i = 0; i < good.size(); ++i) {
    auto bad = good;
    bad[i] = 5;
    EXPECT_THROW(m.run(std::vector<Tensor>{Tensor::of<std::int64_t>({5, 1}, bad)}), Error) << i;
  }
}

TEST(Model, CyclesAndUnknownOperatorsAreErrors) {
  Graph g = test::residual_network();
  g.nodes[0].op = "Mystery";
  EXPECT_THROW(Model{g}, Error);
  Graph loop;
  const auto a = loop.add_value("a"), b = loop.add_value("b");
  loop.nodes.resize(2);
  loop.nodes[0].op = loop.nodes[1].op = "Relu";
  loop.nodes[0].inputs = loop.nodes[1].outputs = {a};
  loop.nodes[1].inputs = loop.nodes[0].outputs = {b};
  EXPECT_THROW(loop.sort(), Error);
}

}  // namespace
}  // namespace offramp

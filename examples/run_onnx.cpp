// The smallest program: an ONNX file, its own policy, one answer.
#include <cstdio>
#include <vector>

#include "offramp/offramp.hpp"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  try {
    auto session = offramp::make_session(offramp::load_onnx(argv[1]));
    const std::vector<float> sample(static_cast<std::size_t>(session.network().sample_size()), 0.5f);
    const offramp::Prediction p = session.predict(sample)[0];
    std::printf("class %ld, confidence %.3f, exit %ld\n", static_cast<long>(p.label), static_cast<double>(p.confidence),
                static_cast<long>(p.exit));
  } catch (const offramp::Error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}

// A user's own layer: a plain type, no base class, nothing in the library changed.
#include <cstdio>

#include "offramp/network/network.hpp"
#include "offramp/session/session.hpp"
#include "random_weights.hpp"

// Scales each element by a learned factor and squares it.
struct ScaledSquare {
  float factor;
  offramp::Index count = 0;

  template <class In>
  using Output = In;  // the compiler knows that the shape stays
  offramp::Shape bind(const offramp::Shape& in, const offramp::kernel::Kernels&) {
    count = in.count();
    return in;
  }
  offramp::Cost cost() const noexcept { return offramp::Cost::plain(2 * count); }
  void forward(const float* in, float* out, offramp::Index batch, float*,
               const offramp::kernel::Kernels&) const noexcept {
    for (offramp::Index i = 0; i < batch * count; ++i) out[i] = factor * in[i] * in[i];
  }
};

int main() {
  using namespace offramp;
  Network net(input<4>, ScaledSquare{2.0f}, Dense<4, 2>({1, 0, 0, 0, 0, 1, 0, 0}, {}));
  Session session(net, Never{});
  const std::vector<float> x{1, 3, 0, 0};
  const Prediction p = session.predict(x)[0];  // logits 2 and 18
  std::printf("class %ld, probability %.6f, %ld FLOPs\n", static_cast<long>(p.label), static_cast<double>(p.confidence),
              static_cast<long>(p.cost.flops));
  return p.label == 1 && p.cost.flops == 8 + 16 ? 0 : 1;
}

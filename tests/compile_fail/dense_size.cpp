#include "offramp/network/network.hpp"
#ifdef CORRECT
constexpr offramp::Index hidden = 8;
#else
constexpr offramp::Index hidden = 9;
#endif
// A layer that expects another size than the one before it makes.
int main() {
  offramp::Network net(offramp::input<4>, offramp::Dense<4, 8>({}, {}), offramp::Dense<hidden, 2>({}, {}));
}

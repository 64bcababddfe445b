#include "offramp/network/network.hpp"
#ifdef CORRECT
constexpr offramp::Index classes = 10;
#else
constexpr offramp::Index classes = 11;
#endif
// An exit that answers other classes than the network.
int main() {
  offramp::Network net(offramp::input<4>, offramp::Dense<4, 8>({}, {}),
                       offramp::Exit(offramp::Dense<8, classes>({}, {})), offramp::Dense<8, 10>({}, {}));
}

#include "offramp/network/network.hpp"
#ifdef CORRECT
constexpr offramp::Index channels = 8;
#else
constexpr offramp::Index channels = 16;
#endif
// A residual block whose body changes the shape needs a shortcut that does, too.
int main() {
  offramp::Network net(offramp::input<8, 4, 4>, offramp::Residual(offramp::Conv2d<8, channels, 3>({}, {})),
                       offramp::GlobalAveragePool(), offramp::Dense<8, 2>({}, {}));
}

#include "offramp/policy/combine.hpp"
#include "offramp/policy/constant.hpp"
// A policy must promise not to throw.
struct Loud {
#ifdef CORRECT
  offramp::Verdict operator()(offramp::ExitContext&) const noexcept {
    return {};
  }
#else
  offramp::Verdict operator()(offramp::ExitContext&) const {
    return {};
  }
#endif
};
int main() {
  const auto p = Loud{} && offramp::Never{};
  static_cast<void>(p);
}

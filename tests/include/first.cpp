#include "offramp/offramp.hpp"

offramp::Index from_the_other_unit();

int main() {
  return offramp::Shape{2, 3}.count() == from_the_other_unit() && offramp::find_operator("Conv") ? 0 : 1;
}

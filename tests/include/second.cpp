#include "offramp/offramp.hpp"

offramp::Index from_the_other_unit() {
  return offramp::find_operator("Relu") ? offramp::Shape{6}.count() : 0;
}

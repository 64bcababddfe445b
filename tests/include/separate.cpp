#include "offramp/separate.hpp"

// What takes longest to compile, beside main.cpp instead of in it.
#include <offramp/separate.hpp>

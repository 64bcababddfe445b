#!/bin/sh
# How long examples/run_onnx.cpp takes to compile with -O2, and how large it is: from headers alone, and with what takes
# longest in a translation unit of its own (OFFRAMP_SEPARATE_COMPILATION).
#   bench/compile_time.sh [COMPILER]
set -eu
compiler=${1:-g++}
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
flags="-std=c++20 -O2 -I$root/include"

compile() {  # WHAT OUTPUT ARGUMENTS...
  what=$1 output=$2
  shift 2
  begin=$(date +%s%N)
  "$compiler" $flags "$@" -o "$work/$output"
  end=$(date +%s%N)
  echo "$what: $(((end - begin) / 100000000))" | sed 's/\(.\)$/.\1 s/'
}
size() {  # WHAT PROGRAM
  strip "$work/$2"
  echo "$1: $(stat -c %s "$work/$2") bytes stripped"
}

compile 'headers alone' alone "$root/examples/run_onnx.cpp" -pthread
size 'headers alone' alone
compile 'separate: the program' program.o -DOFFRAMP_SEPARATE_COMPILATION=1 -c "$root/examples/run_onnx.cpp"
echo '#include <offramp/separate.hpp>' >"$work/separate.cpp"
compile 'separate: the library, once' library.o -DOFFRAMP_SEPARATE_COMPILATION=1 -ffunction-sections -c "$work/separate.cpp"
"$compiler" "$work/program.o" "$work/library.o" -Wl,--gc-sections -pthread -o "$work/linked"
size 'separate' linked

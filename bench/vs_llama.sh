#!/usr/bin/env bash
# Holds fathom against llama.cpp 0.5.0 on the bundled model: the same logits, prefill and decode.
# Takes llama.cpp's libraries and its header from npm (45 MB); options go to the program:
#   bench/vs_llama.sh [--tokens 4096] [--depths 0,4096,8192,16384] [--threads 2] [--repeats 5]
set -euo pipefail
cd "$(dirname "$0")/.."

version=3.22.1  # of node-llama-cpp, which carries llama.cpp 0.5.0
peer=build/llama.cpp
libraries=$peer/libraries/package/bins/linux-x64

scripts/setup.sh build test
fetch() {  # fetch PACKAGE FOLDER
  [[ -d $peer/$2/package ]] && return
  echo "vs_llama: fetching $1@$version" >&2
  mkdir -p "$peer/$2"
  local archive
  archive=$(npm pack --silent --pack-destination "$peer" "$1@$version")
  tar -xzf "$peer/$archive" -C "$peer/$2"
  rm "$peer/$archive"
}
fetch @node-llama-cpp/linux-x64 libraries
fetch node-llama-cpp source
[[ -d $peer/llama.cpp ]] ||
  git clone --quiet "$peer/source/package/llama/gitRelease.bundle" "$peer/llama.cpp" 2>/dev/null

cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Release --log-level=WARNING \
  -DFATHOM_LLAMA_CPP="$PWD/$peer" >&2
cmake --build build --target vs_llama >&2
# Threads that spin while they wait for work would slow the one whose turn it is.
OMP_WAIT_POLICY=passive exec build/bench/vs_llama --libraries "$libraries" "$@"

#!/usr/bin/env bash
# Holds a training step of recipes/nano.json against the same one in eager PyTorch (Debian's 1.13):
# the same weights, rows and optimizer class, the first loss compared, then seven rounds in turns.
# Options go to the program:
#   bench/train_vs_torch.sh [--tokens data/nano/tokens] [--threads 2] [--rounds 7] [--json FILE]
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh build peer
# Another python on PATH may not have Debian's packages.
for python in /usr/bin/python3 python3 none; do
  "$python" -c 'import torch, numpy' 2>/dev/null && break
done
if [[ $python == none ]]; then
  echo "train_vs_torch: no python3 can import torch and numpy; expected Debian's packages:" >&2
  echo "  apt-get install python3-torch python3-numpy" >&2
  exit 1
fi
[[ -x build/fathom ]] || make build >&2
# Threads that spin while they wait for work would slow the one whose turn it is.
OMP_WAIT_POLICY=passive exec "$python" bench/train_vs_torch.py "$@"

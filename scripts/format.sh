#!/usr/bin/env bash
# format.sh formats all C++ sources; format.sh --check only says which are not formatted. Another
# clang-format than Debian 12's breaks lines differently: --check then exits 77, "skipped".
set -euo pipefail
cd "$(dirname "$0")/.."

readonly wanted=14
program=clang-format-$wanted
command -v $program >/dev/null || program=clang-format
if ! $program --version 2>/dev/null | grep -q "version $wanted\."; then
  echo "format: needs clang-format $wanted (Debian package clang-format-$wanted)" >&2
  [[ ${1:-} == --check ]] && exit 77
  exit 1
fi
arguments=(-i)
[[ ${1:-} == --check ]] && arguments=(--dry-run -Werror)
shopt -s nullglob
find src tests bench*/ -name node_modules -prune -o \( -name '*.h' -o -name '*.cpp' \) -print0 |
  xargs -0 "$program" "${arguments[@]}"

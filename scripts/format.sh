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
# Files that git knows: what somebody is still writing is judged when it is added. safe.directory:
# a checkout may belong to another user than the one who tests.
git -c safe.directory='*' ls-files -z -- '*.h' '*.cpp' |
  while IFS= read -r -d '' file; do if [[ -e $file ]]; then printf '%s\0' "$file"; fi; done |
  xargs -0 -r "$program" "${arguments[@]}"

#!/usr/bin/env bash
# setup.sh GROUP...: installs the Debian packages of the groups that are missing, by name. Says and
# does nothing when all are there. docs/DEPENDENCIES.md says what each is for.
set -euo pipefail

# "package" is there if dpkg has it, "package:program" if the program is.
build=(
  g++:g++ cmake:cmake ninja-build:ninja ccache:ccache pkg-config:pkg-config
  libtorch-dev libopenblas0-pthread nlohmann-json3-dev libcli11-dev libcpp-httplib-dev
  libgloo-dev libpcre2-dev zlib1g-dev libssl-dev libfmt-dev libgtest-dev
)
test=(git:git openmpi-bin:mpirun clang-format:clang-format nodejs:node npm:npm chromium:chromium
  fonts-liberation)

peer=(python3-torch python3-numpy)

is_there() {
  local package=${1%%:*} program=${1#*:}
  if [[ $1 == *:* ]]; then
    command -v "$program" >/dev/null
  else
    [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) == installed ]]
  fi
}

missing=()
for group in "$@"; do
  declare -n packages=$group
  for package in "${packages[@]}"; do
    is_there "$package" || missing+=("${package%%:*}")
  done
done
((${#missing[@]})) || exit 0

as_root=()
if ((EUID != 0)); then
  if ! command -v sudo >/dev/null; then
    echo "setup: these Debian packages are missing, and there is no sudo to install them:" >&2
    echo "  apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
echo "setup: installing ${missing[*]}"
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -q
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get install -q -y --no-install-recommends "${missing[@]}"

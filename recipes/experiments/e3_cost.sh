#!/usr/bin/env bash
# E3: CPU seconds and memory of a training step against its sequence's length, dense and sparse (512
# keys), to 65,536 tokens of nano in one sequence. What counts as passed stands in e3_cost.json.
# Resumable: lengths that were measured are skipped. Options: --threads N (1), --lengths "1024 ...",
# --tokens FOLDER (random tokens otherwise, whose selections have less in common than text's),
# --fathom PROGRAM.
set -euo pipefail
cd "$(dirname "$0")/../.."

fathom=build/fathom
threads=1
lengths="1024 2048 4096 8192 16384 32768 65536"
tokens=()
while (($#)); do
  case $1 in
    --fathom) fathom=$2 ;;
    --threads) threads=$2 ;;
    --lengths) lengths=$2 ;;
    --tokens) tokens=(--tokens "$2") ;;
    *)
      echo "e3_cost: unknown option $1; expected --threads N, --lengths \"1024 ...\"," \
        "--tokens FOLDER, --fathom PROGRAM" >&2
      exit 2
      ;;
  esac
  shift 2
done
[[ -x $fathom ]] || make build
runs=runs/experiments/e3_cost
for length in $lengths; do
  for stage in sparse dense; do
    grep -qs "\"tokens\":$length," "$runs/seed-1/$stage/metrics.jsonl" && continue
    echo "$stage, $length tokens"
    nice "$fathom" bench train --model models/nano --topk 512 --lengths "$length" \
      --stages "$stage" --threads "$threads" --repeats 2 "${tokens[@]}" \
      --runs "$runs/seed-1" >/dev/null
  done
done
"$fathom" experiment recipes/experiments/e3_cost.json --runs "$runs" --out docs/experiments

#!/usr/bin/env bash
# E2: what happens without the report's cuts between the indexers' loss and the main model, and
# without the warm-up. First the gradients of one batch, which must be the same bits with the cuts
# and the indexers' loss on or off (e2_gradients.json), then training. Begins with E1's models.
# Resumable; finished arms are skipped. Options: --smoke, --seeds "1 2 3", --threads 2.
. "$(dirname "$0")/run.sh"

prepare_text
for seed in $seeds; do
  train_base "$seed"
  begin=$base/seed-$seed arms=$runs/seed-$seed
  arm() {  # arm NAME BEGINNING [--set ...]
    local name=$1 init=$2
    shift 2
    train "$arms/$name" "$seed" sparse "$init" --set experiment.attention_entropy=true "$@"
  }
  arm cuts "$begin/warmup"
  arm no_input_cut "$begin/warmup" --set experiment.detach_indexer_input=false
  arm no_teacher_cut "$begin/warmup" --set experiment.detach_teacher=false
  arm no_cuts "$begin/warmup" --set experiment.detach_indexer_input=false \
    --set experiment.detach_teacher=false
  arm no_warmup "$begin/dense"
done
warmup=$base/seed-${seeds%% *}/warmup
mkdir -p "$out"
"$fathom" bench decoupling --recipe "$recipe" --model "$warmup/$(<"$warmup/latest")" \
  --threads "$threads" --json | tee "$out/e2_gradients.json"
"$fathom" experiment recipes/experiments/e2_decoupling.json --runs "$runs" --out "$out"
grep -A1 '"cuts"' "$out/e2_gradients.json" | grep -q '"is_bit_identical": *true' || {
  echo "e2_decoupling: with the cuts the indexers' loss moves the main model's gradients" >&2
  exit 1
}

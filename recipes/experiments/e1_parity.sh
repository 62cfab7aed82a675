#!/usr/bin/env bash
# E1: does sparse training lose anything against dense training? What counts as passed stands in
# e1_parity.json. Every arm trains the main model on the same tokens, beginning with the same one:
#   dense        goes on densely
#   warmup_only  the dense arm's model, whose indexers then learn what it does: sparse without
#                sparse training
#   sparse       the indexers' warm-up first, then the sparse stage
#   random, window, oracle   the sparse stage with other keys than the indexer's
# Resumable; finished arms are skipped. Options: --smoke, --seeds "1 2 3", --threads 2.
. "$(dirname "$0")/run.sh"

prepare_text
for seed in $seeds; do
  train_base "$seed"
  begin=$base/seed-$seed arms=$runs/seed-$seed
  # The same steps, rows and learning rates as the sparse stage's, without its selection.
  train "$arms/dense" "$seed" extend "$begin/dense" --set training.steps=150 \
    --set training.decay_fraction=0.5
  train "$arms/warmup_only" "$seed" warmup "$arms/dense"
  train "$arms/sparse" "$seed" sparse "$begin/warmup"
  for rule in random window oracle; do
    train "$arms/$rule" "$seed" sparse "$begin/dense" --set "experiment.key_rule=\"$rule\""
  done
done
"$fathom" experiment recipes/experiments/e1_parity.json --runs "$runs" --out "$out"

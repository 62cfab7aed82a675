# What the experiments' scripts share; they source it. Sets: fathom, recipe, runs, threads, smoke.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fathom=build/fathom
recipe=recipes/experiments/net_s.json
threads=2
smoke=
seeds="1 2 3"
while (($#)); do
  case $1 in
    --smoke) smoke=1 ;;  # a few steps an arm, to see that every arm runs
    --seeds) seeds=$2 && shift ;;
    --threads) threads=$2 && shift ;;
    --fathom) fathom=$2 && shift ;;
    *)
      echo "$(basename "$0"): unknown option $1; expected --smoke, --seeds \"1 2 3\"," \
        "--threads N, --fathom PROGRAM" >&2
      exit 2
      ;;
  esac
  shift
done
runs=runs/experiments/$(basename "$0" .sh)${smoke:+-smoke}
base=runs/experiments/base${smoke:+-smoke}  # E1 and E2 begin with the same models
out=docs/experiments
[[ -z $smoke ]] || out=$runs
[[ -x $fathom ]] || make build

# The text of the bundled recipe, with a vocabulary that fits a net of a million parameters.
prepare_text() {
  [[ -f data/nano/text/manifest.json ]] ||
    "$fathom" corpus --recipe recipes/nano.json --out data/nano/text
  mkdir -p data/experiments
  [[ -e data/experiments/text ]] || ln -s ../nano/text data/experiments/text
}

# train FOLDER SEED STAGE INIT [--set ...]: a run, resumed where it was cut off, skipped where done.
train() {
  local folder=$1 seed=$2 stage=$3 init=$4
  shift 4
  if [[ -f $folder/done ]]; then
    echo "$folder: done before"
    return
  fi
  local options=(--stage "$stage" --recipe "$recipe" --run "$folder" --threads "$threads"
    --set "training.seed=$seed" "$@")
  [[ -z $init ]] || options+=(--init "$init/$(<"$init/latest")")
  [[ -z $smoke ]] || options+=(--set training.steps=3 --set training.warmup_steps=1
    --set training.validate_every=3 --set retrieval.validation_rows=2)
  echo "$folder: $stage"
  nice "$fathom" pretrain "${options[@]}"
  touch "$folder/done"
}

# The share of answers that a run's last validation found within the window.
retrieval_of() {
  grep -o '"validation_retrieval_within":[0-9.e-]*' "$1/metrics.jsonl" | tail -n 1 | cut -d: -f2
}

# train_until_learned FOLDER BEGINNING STAGE [--set ...]: rounds of the same training, each with other
# rows, until the net can look things up. Sets `learned` to the last round's folder.
train_until_learned() {
  local folder=$1 init=$2 stage=$3 round
  shift 3
  for round in 1 2 3 4; do
    learned=$folder
    ((round == 1)) || learned=$folder-$round
    train "$learned" $((seed + 100 * (round - 1))) "$stage" "$init" "$@"
    [[ -z $smoke ]] || break
    awk "BEGIN {exit !($(retrieval_of "$learned") < 0.9)}" || break
    init=$learned
  done
}

# The models that every arm begins with, of one seed. Rows of 64 tokens, mostly retrieval: a net
# learns to look things up at once, sooner or later by the seed, and in longer rows much later. Then
# rows twice to four times as long and more pairs, up to 2,048 tokens, then the indexers' warm-up.
train_base() {
  local seed=$1 learned
  local models=$base/seed-$seed
  train_until_learned "$models/short" "" dense --set retrieval.share=0.8 \
    --set retrieval.num_pairs=6 --set retrieval.num_queries=6
  grow() {  # grow LENGTH ROWS PAIRS QUERIES
    train_until_learned "$models/length-$1" "$learned" extend --set training.steps=100 \
      --set "training.sequence_length=$1" --set "training.batch_rows=$2" \
      --set "training.micro_batch_rows=$2" --set "retrieval.num_pairs=$3" \
      --set "retrieval.num_queries=$4"
  }
  grow 256 32 24 20
  grow 512 16 40 32
  grow 1024 8 64 48
  train "$models/dense" "$seed" extend "$learned"
  train "$models/warmup" "$seed" warmup "$models/dense"
}

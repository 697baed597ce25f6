#!/usr/bin/env bash
# Layers shifted from the decoder to the encoder at equal parameters: trains three depths and makes one table of the test split.
# usage: recipes/demo/canary.sh [DIRECTORY]     (default: exp/canary)
set -euo pipefail
out=${1:-exp/canary}
data=$out/data
[ -d "$data" ] || speechkit prepare demo "$data"
rows=()
for depth in 12_12 18_6 22_2; do
  run=$out/$depth
  speechkit train experiment=demo_canary model=canary_$depth data.train="$data/train.jsonl" data.valid="$data/dev.jsonl" run_dir="$run"
  layers=${depth/_/\/}
  rows+=("$layers, greedy=$run/pretrained:aed_greedy:draft=none" "$layers, speculative=$run/pretrained:aed_greedy")
  rows+=("$layers, joint=$run/pretrained:aed_joint")
done
python scripts/families_table.py --manifest "$data/test.jsonl" --output "$out/table.md" --threads 2 "${rows[@]}"

#!/usr/bin/env bash
# speechocean762: train, decode and score; adults and children apart.
# usage: SPEECHKIT_DATA=<directory with speechocean762/> recipes/speechocean762/run.sh [DIRECTORY]
set -euo pipefail
: "${SPEECHKIT_DATA:?set it to the directory that holds speechocean762/}"
out=${1:-exp/speechocean762_ctc}
speechkit train experiment=speechocean762_ctc run_dir="$out"
for split in dev test; do
  manifest=$SPEECHKIT_DATA/speechocean762/$split/manifest.jsonl
  speechkit decode checkpoint="$out/pretrained" manifest="$manifest" output="$out/$split.jsonl"
  speechkit score "$out/$split.jsonl" --by 'age>=18'
done
speechkit rtfx "$out/test.jsonl"

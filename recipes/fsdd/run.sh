#!/usr/bin/env bash
# Free Spoken Digit Dataset: train, decode and score the test split (the official recordings 0-4).
# usage: SPEECHKIT_DATA=<directory with fsdd/> recipes/fsdd/run.sh [DIRECTORY]
#   speechkit download fsdd corpora && speechkit prepare fsdd corpora/fsdd data/fsdd      makes that directory
set -euo pipefail
: "${SPEECHKIT_DATA:?set it to the directory that holds fsdd/}"
out=${1:-exp/fsdd_ctc}
speechkit train experiment=fsdd_ctc run_dir="$out"
for split in dev test; do
  speechkit decode checkpoint="$out/pretrained" manifest="$SPEECHKIT_DATA/fsdd/$split/manifest.jsonl" output="$out/$split.jsonl"
  speechkit score "$out/$split.jsonl" --by speaker
done
speechkit rtfx "$out/test.jsonl"

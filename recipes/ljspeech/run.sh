#!/usr/bin/env bash
# LJSpeech excerpt: train, decode and score; then one long recording in one call.
# usage: SPEECHKIT_DATA=<directory with ljspeech/ and speechocean762/> recipes/ljspeech/run.sh [DIRECTORY]
set -euo pipefail
: "${SPEECHKIT_DATA:?set it to the directory that holds ljspeech/}"
out=${1:-exp/ljspeech_ctc}
[ -d exp/speechocean762_ctc/pretrained ] || recipes/speechocean762/run.sh # whose encoder it begins with
speechkit train experiment=ljspeech_ctc run_dir="$out"
for split in dev test; do
  speechkit decode checkpoint="$out/pretrained" manifest="$SPEECHKIT_DATA/ljspeech/$split/manifest.jsonl" output="$out/$split.jsonl"
  speechkit score "$out/$split.jsonl" --normalizer basic
done
python scripts/score_longform.py "$out/pretrained" "$SPEECHKIT_DATA/ljspeech/longform.jsonl" --id LJ002_0101_0155_long

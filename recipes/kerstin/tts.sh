#!/usr/bin/env bash
# German voices from 94 minutes of Kerstin, one core each, read by a recogniser of the same reader's training sentences.
# usage: SPEECHKIT_DATA=<directory with kerstin_de/> recipes/kerstin/tts.sh [DIRECTORY]     (default: exp)
set -euo pipefail
: "${SPEECHKIT_DATA:?set it to the directory that holds kerstin_de/}"
out=${1:-exp}
train() { # EXPERIMENT [KEY=VALUE ...]
  [ -d "$out/$1/pretrained" ] || speechkit train experiment="$1" run_dir="$out/$1" data.cache_dir="$out/cache" threads=1 resume=true "${@:2}"
}
train kerstin_fastspeech
train kerstin_flow
[ -d "$out/speechocean762_ctc/pretrained" ] || recipes/speechocean762/run.sh # whose encoder the recogniser begins with
[ -d "$out/kerstin_ctc/pretrained" ] || speechkit train experiment=kerstin_ctc run_dir="$out/kerstin_ctc" threads=1 resume=true
python scripts/synthesis_table.py --manifest "$SPEECHKIT_DATA/kerstin_de/test/manifest.jsonl" --timed 12 --threads 2 \
  --reader "$out/kerstin_ctc/pretrained" --output "$out/kerstin_voices.md" \
  "recordings=recordings" \
  "FastSpeech 2=$out/kerstin_fastspeech/pretrained" \
  "Matcha, 10 steps=$out/kerstin_flow/pretrained"

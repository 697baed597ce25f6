#!/usr/bin/env bash
# The main job end to end on the embedded corpus: prepare, train, decode, score, transcribe a file. Nothing is downloaded.
# usage: recipes/demo/run.sh [DIRECTORY]     (default: exp/demo)
set -euo pipefail
out=${1:-exp/demo}
data=$out/data
begin=$SECONDS

echo "== 1/5 prepare: synthetic speech of many voices; the voices and sentences of the test split are never trained on"
speechkit prepare demo "$data"

echo "== 2/5 train"
speechkit train experiment=demo_ctc data.train="$data/train.jsonl" data.valid="$data/dev.jsonl" run_dir="$out/run"

echo "== 3/5 decode the unseen voices"
speechkit decode checkpoint="$out/run/pretrained" manifest="$data/test.jsonl" output="$out/hyps.jsonl"

echo "== 4/5 score"
speechkit score "$out/hyps.jsonl" --worst 3
speechkit rtfx "$out/hyps.jsonl"

echo "== 5/5 transcribe a file"
file=$(find "$data" -name '*.flac' -path '*test*' | sort | head -n 1)
echo "$file:"
speechkit transcribe "$file" --model "$out/run/pretrained" --format srt
echo "== done in $((SECONDS - begin)) s"

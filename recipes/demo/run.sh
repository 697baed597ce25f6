#!/usr/bin/env bash
# The main job end to end on the embedded corpus: prepare, train, decode, score, transcribe a file. Nothing is downloaded.
# usage: recipes/demo/run.sh [DIRECTORY]     (default: exp/demo)
set -euo pipefail
out=${1:-exp/demo}
data=$out/data
begin=$SECONDS

echo "== 1/6 prepare: synthetic speech of many voices; the voices and sentences of the test split are never trained on"
speechkit prepare demo "$data"

echo "== 2/6 train"
speechkit train experiment=demo_ctc data.train="$data/train.jsonl" data.valid="$data/dev.jsonl" run_dir="$out/run"

echo "== 3/6 a language model of more sentences of the kind, none of them in the test split"
speechkit lm "$data/text_en.txt" -o "$out/lm.arpa"

echo "== 4/6 decode the unseen voices, without and with the language model"
speechkit decode checkpoint="$out/run/pretrained" manifest="$data/test.jsonl" output="$out/greedy.jsonl"
speechkit decode checkpoint="$out/run/pretrained" manifest="$data/test.jsonl" output="$out/lm.jsonl" decode=ctc_beam_lm \
  decode.options.lm="$out/lm.arpa" decode.options.lm_weight=0.5 decode.options.word_bonus=3.0

echo "== 5/6 score"
for name in greedy lm; do
  speechkit score "$out/$name.jsonl"
  speechkit rtfx "$out/$name.jsonl"
done

echo "== 6/6 transcribe a file"
file=$(find "$data" -name '*.flac' -path '*test*' | sort | sed -n 1p) # not head: it would break the pipe of sort
echo "$file:"
speechkit transcribe "$file" --model "$out/run/pretrained" --format srt
echo "== done in $((SECONDS - begin)) s"

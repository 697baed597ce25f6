#!/usr/bin/env bash
# Synthesis end to end on the embedded voice: prepare, train, speak unseen sentences, let a recogniser read them. Nothing is
# downloaded. Fails where the recogniser reads the synthesiser more than 5 points worse than the voice it learnt from.
# usage: recipes/demo/tts.sh [DIRECTORY]     (default: exp/demo_tts)
set -euo pipefail
out=${1:-exp/demo_tts}
data=$out/data
begin=$SECONDS

echo "== 1/5 prepare: one synthetic voice; the sentences of the test split are never trained on"
speechkit prepare demo "$data" --set voices=single --set "speed=[160,160]" --set "pitch=[50,50]" \
  --set num_train=2000 --set num_dev=100 --set num_test=100

echo "== 2/5 train"
speechkit train experiment=demo_fastspeech data.train="$data/train.jsonl" data.valid="$data/dev.jsonl" \
  data.cache_dir="$out/cache" run_dir="$out/run"

echo "== 3/5 speak unseen sentences; pictures of the first ten"
speechkit synthesize-corpus checkpoint="$out/run/pretrained" manifest="$data/test.jsonl" text_field=text_raw \
  output="$out/speech" recognizer=demo-ctc plots=10

echo "== 4/5 what a recogniser reads of the voice itself, and of the synthesis"
speechkit decode checkpoint=demo-ctc manifest="$data/test.jsonl" output="$out/voice.jsonl"
speechkit score "$out/voice.jsonl" "$out/speech/synthesis.jsonl" --json "$out/score.json"
speechkit rtfx "$out/speech/synthesis.jsonl"
python - "$out/score.json" <<'PYTHON'
import json, sys
voice, synthesis = (100 * file["cer"] for file in json.load(open(sys.argv[1]))["files"])
print(f"CER of the voice {voice:.2f} %, of the synthesis {synthesis:.2f} %: {synthesis - voice:+.2f} points")
sys.exit(synthesis - voice > 5.0)
PYTHON

echo "== 5/5 speak a text"
speechkit synthesize "Good morning, the train to Prague leaves at five." --model "$out/run/pretrained" \
  -o "$out/a.wav" --plot "$out/a.png" --alignment "$out/a.json"
echo "== done in $((SECONDS - begin)) s: listen to $out/a.wav and $out/speech/audio"

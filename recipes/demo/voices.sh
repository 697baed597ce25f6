#!/usr/bin/env bash
# Every family of synthesis on the embedded voice, one core each, and the table of all; hours on two cores. Nothing is downloaded.
# usage: recipes/demo/voices.sh [DIRECTORY]     (default: exp)
set -euo pipefail
out=${1:-exp}
data=$out/demo_voice/data
[ -d "$data" ] || speechkit prepare demo "$data" --set voices=single --set "speed=[160,160]" --set "pitch=[50,50]" \
  --set num_train=2000 --set num_dev=100 --set num_test=100
train() { # EXPERIMENT [KEY=VALUE ...]
  [ -d "$out/$1/pretrained" ] || speechkit train experiment="$1" run_dir="$out/$1" data.train="$data/train.jsonl" \
    data.valid="$data/dev.jsonl" data.cache_dir="$out/cache" threads=1 resume=true "${@:2}"
}
train demo_fastspeech
train demo_matcha
train demo_f5
train demo_codec
train demo_maskgct model.codec._pretrained_="$out/demo_codec/pretrained"
train demo_codec_sq
train demo_simplespeech model.codec._pretrained_="$out/demo_codec_sq/pretrained"
train demo_vocos
table() { # TABLE.md [ARGUMENT ...]
  python scripts/synthesis_table.py --manifest "$data/test.jsonl" --text-field text_raw --reader demo-ctc --limit 50 --timed 12 --threads 2 --output "$@"
}
table "$out/voices_griffin_lim.md" "recordings=recordings" "FastSpeech 2=$out/demo_fastspeech/pretrained" "codec, copy=$out/demo_codec/pretrained"
table "$out/voices.md" --vocoder "$out/demo_vocos/pretrained" \
  "recordings=recordings" \
  "Vocos, copy=$out/demo_vocos/pretrained" \
  "codec, copy=$out/demo_codec/pretrained" \
  "FastSpeech 2=$out/demo_fastspeech/pretrained" \
  "Matcha, 10 steps=$out/demo_matcha/pretrained" \
  "Matcha, 4 steps=$out/demo_matcha/pretrained:flow_matcha:num_steps=4" \
  "F5, 16 steps=$out/demo_f5/pretrained:flow_f5:num_steps=16" \
  "F5, 7 steps=$out/demo_f5/pretrained:flow_f5:num_steps=7" \
  "SimpleSpeech 2=$out/demo_simplespeech/pretrained" \
  "MaskGCT=$out/demo_maskgct/pretrained"

#!/usr/bin/env bash
# Voices from half an hour of LJSpeech, beginning with those of the embedded voice (recipes/demo/voices.sh), one core each.
# usage: SPEECHKIT_DATA=<directory with ljspeech/> recipes/ljspeech/tts.sh [DIRECTORY]     (default: exp)
set -euo pipefail
: "${SPEECHKIT_DATA:?set it to the directory that holds ljspeech/}"
out=${1:-exp}
corpus=$SPEECHKIT_DATA/ljspeech
[ -d "$out/demo_maskgct/pretrained" ] || recipes/demo/voices.sh "$out"
train() { # EXPERIMENT [KEY=VALUE ...]
  [ -d "$out/$1/pretrained" ] || speechkit train experiment="$1" run_dir="$out/$1" data.cache_dir="$out/cache" threads=1 resume=true "${@:2}"
}
train ljspeech_fastspeech
for split in train dev; do # when each phone is spoken, as FastSpeech 2 found
  [ -f "$out/ljspeech_aligned/$split.jsonl" ] ||
    speechkit align "$out/ljspeech_fastspeech/pretrained" "$corpus/$split/manifest.jsonl" -o "$out/ljspeech_aligned/$split.jsonl"
done
train ljspeech_flow init_from="$out/demo_matcha/pretrained" tokenizer.name="$out/demo_matcha/pretrained"
train ljspeech_codec init_from="$out/demo_codec/pretrained"
train ljspeech_maskgct init_from="$out/demo_maskgct/pretrained" tokenizer.name="$out/demo_maskgct/pretrained" \
  data.train="$out/ljspeech_aligned/train.jsonl" data.valid="$out/ljspeech_aligned/dev.jsonl" \
  model.codec._pretrained_="$out/ljspeech_codec/pretrained"
train ljspeech_vocos init_from="$out/demo_vocos/pretrained"
python scripts/synthesis_table.py --manifest "$corpus/test/manifest.jsonl" --reader moonshine --normalizer whisper_en --timed 12 --threads 2 \
  --vocoder "$out/ljspeech_vocos/pretrained" --output "$out/ljspeech_voices.md" \
  "recordings=recordings" \
  "Vocos, copy=$out/ljspeech_vocos/pretrained" \
  "codec, copy=$out/ljspeech_codec/pretrained" \
  "FastSpeech 2=$out/ljspeech_fastspeech/pretrained" \
  "Matcha, 10 steps=$out/ljspeech_flow/pretrained" \
  "MaskGCT=$out/ljspeech_maskgct/pretrained"

#!/usr/bin/env bash
# Every recogniser family from one trained CTC encoder, trained alike for 8 more epochs, in one table of the test split.
# usage: SPEECHKIT_DATA=<directory with speechocean762/ and text_en/> recipes/speechocean762/families.sh [DIRECTORY]
set -euo pipefail
: "${SPEECHKIT_DATA:?set it to the directory that holds speechocean762/}"
out=${1:-exp}
start=$out/speechocean762_ctc/pretrained
[ -d "$start" ] || recipes/speechocean762/run.sh "$out/speechocean762_ctc"
alike=(augment=speed_shift_specaugment trainer.max_epochs=8 threads=1 data.num_workers=1)
speechkit train experiment=speechocean762_ctc "${alike[@]}" init_from="$start" init_prefix=model. run_dir="$out/families_ctc"
for family in aed paraformer cassnat owsm_ctc; do
  speechkit train experiment=speechocean762_$family "${alike[@]}" init_from="$start" run_dir="$out/families_$family"
done
speechkit train experiment=speechocean762_paraformer "${alike[@]}" init_from="$out/families_paraformer/pretrained" init_prefix=model. \
  model.mwer_weight=1.0 model.ce_weight=0.01 optim.lr=1.0e-4 trainer.max_epochs=1 trainer.check_val_every_n_epoch=1 run_dir="$out/families_paraformer_mwer"
speechkit train experiment=speechocean762_paraformer "${alike[@]}" init_from="$start" model.token_source=cif model.ctc_weight=0.3 run_dir="$out/families_paraformer_cif"
texts=$SPEECHKIT_DATA/speechocean762/train/manifest.jsonl
speechkit lm "$texts" "$texts" "$texts" "$texts" "$SPEECHKIT_DATA/text_en/train.tsv" --column 2 -o "$out/speechocean762_ctc/lm.arpa"
recipes/speechocean762/families_table.sh "$out"

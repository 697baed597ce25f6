#!/usr/bin/env bash
# The table of recipes/speechocean762/families.sh, from what it has trained.
# usage: SPEECHKIT_DATA=<directory with speechocean762/> recipes/speechocean762/families_table.sh [DIRECTORY] [SPLIT]
set -euo pipefail
: "${SPEECHKIT_DATA:?set it to the directory that holds speechocean762/}"
out=${1:-exp}
split=${2:-test}
lm=lm=$out/speechocean762_ctc/lm.arpa:lm_weight=0.5:word_bonus=3
python scripts/families_table.py --manifest "$SPEECHKIT_DATA/speechocean762/$split/manifest.jsonl" --output "$out/families_$split.md" --threads 2 \
  "CTC, where all begin=$out/speechocean762_ctc/pretrained:ctc_greedy" \
  "CTC=$out/families_ctc/pretrained:ctc_greedy" \
  "CTC, prefix beam 20, trigram=$out/families_ctc/pretrained:ctc_beam_lm:$lm" \
  "AED, greedy=$out/families_aed/pretrained:aed_greedy:draft=none" \
  "AED, greedy, speculative=$out/families_aed/pretrained:aed_greedy" \
  "AED, beam 10=$out/families_aed/pretrained:aed_beam:beam_size=10:ctc_weight=0" \
  "AED, joint, beam 10=$out/families_aed/pretrained:aed_joint" \
  "AED, CTC N-best rescored=$out/families_aed/pretrained:aed_rescore" \
  "Paraformer, CTC path=$out/families_paraformer/pretrained:paraformer" \
  "Paraformer, CTC path, MWER=$out/families_paraformer_mwer/pretrained:paraformer" \
  "Paraformer, CIF=$out/families_paraformer_cif/pretrained:paraformer" \
  "CASS-NAT, best path=$out/families_cassnat/pretrained:cassnat_best_path" \
  "CASS-NAT, ESA 4=$out/families_cassnat/pretrained:cassnat_esa:num_samples=4" \
  "CASS-NAT, ESA 16=$out/families_cassnat/pretrained:cassnat_esa:num_samples=16" \
  "CASS-NAT, ESA 16, ranked by trigram=$out/families_cassnat/pretrained:cassnat_esa:num_samples=16:rank_by=lm:$lm" \
  "CASS-NAT, ESA 16, ranked by AED=$out/families_cassnat/pretrained:cassnat_esa_ranked:num_samples=16:ranker=$out/families_aed/pretrained" \
  "OWSM-CTC=$out/families_owsm_ctc/pretrained:owsm_ctc"

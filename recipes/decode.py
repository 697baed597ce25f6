"""Decode a manifest: `speechkit decode checkpoint=<folder or name> manifest=<jsonl> output=<jsonl> [key=value ...]`.

Writes one row per utterance, in the order of the manifest: id, ref, hyp, score, audio_s, decode_s, speaker, lang and the
manifest's further fields. Batches hold utterances of similar length. `<output>.meta.json` states what `decode_s` timed
and how; `scripts/score_wer.py` and `scripts/rtfx.py` read both files.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm import tqdm

from speechkit.data.collate import collate_asr
from speechkit.data.dataset import SpeechDataset
from speechkit.data.loader import batches_by_length
from speechkit.data.manifest import atomic_file, read_manifest
from speechkit.metrics.rtfx import RunInfo, write_run_info
from speechkit.pretrained import load_recognizer
from speechkit.recognizer import Recognizer
from speechkit.training.run import one_line_errors, set_threads
from speechkit.types import Hypothesis, Utterance


@hydra.main(version_base="1.3", config_path="../conf", config_name="decode")
def main(cfg: DictConfig) -> None:
    """Entry point; the work is in `decode`."""
    with one_line_errors():
        decode(cfg)


def decode(cfg: DictConfig) -> None:
    """Decodes what the configuration names and writes the rows and what was timed."""
    started = time.perf_counter()
    set_threads(cfg.threads)
    recognizer = load_recognizer(cfg.checkpoint, device=cfg.device, dtype=cfg.dtype)
    if cfg.get("decode") is not None:
        recognizer.options = instantiate(cfg.decode).keywords["options"]
    utterances = read_manifest(cfg.manifest)
    if not utterances:
        raise ValueError(f"manifest={cfg.manifest} holds no utterance")
    dataset = SpeechDataset(utterances=utterances, sample_rate=recognizer.sample_rate)
    batches = batches_by_length(dataset.durations, max_batch_seconds=cfg.batch_seconds)
    rows: dict[int, dict[str, Any]] = {}
    for number, indices in enumerate(tqdm(batches, disable=not sys.stderr.isatty(), unit="batch")):
        batch = collate_asr([dataset[index] for index in indices])
        if number < cfg.warmup_batches:
            recognizer.decode_batch(batch)
        hypotheses, seconds = recognizer.decode_batch(batch)
        lengths = batch.wave_lens_B.tolist()
        for index, hypothesis, length in zip(indices, hypotheses, lengths):
            audio_s = length / recognizer.sample_rate
            share = length / sum(lengths) if sum(lengths) else 1 / len(lengths)
            rows[index] = row(utterances[index], hypothesis, audio_s=audio_s, decode_s=seconds * share)
    output = Path(cfg.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(output) as file:
        for index in range(len(utterances)):
            file.write((json.dumps(rows[index], ensure_ascii=False) + "\n").encode())
    info = run_info(cfg, recognizer, warmup_batches=min(cfg.warmup_batches, len(batches)), wall_s=time.perf_counter() - started)
    write_run_info(output, info)
    audio_s, decode_s = (sum(each[key] for each in rows.values()) for key in ("audio_s", "decode_s"))
    print(f"{output}: {len(rows)} utterances, {audio_s / 60:.1f} min in {decode_s:.1f} s, RTFx {audio_s / decode_s:.1f}")


def row(utterance: Utterance, hypothesis: Hypothesis, *, audio_s: float, decode_s: float) -> dict[str, Any]:
    """One line of hyps.jsonl; times of words and tokens are in it if the decode options ask for them."""
    fields = {
        "id": utterance.id,
        "ref": utterance.text,
        "hyp": hypothesis.text,
        "score": hypothesis.score,
        "audio_s": round(audio_s, 4),
        "decode_s": round(decode_s, 6),
        "speaker": utterance.speaker,
        "lang": utterance.lang,
        "confidence": round(hypothesis.confidence, 4),
    }
    for name, words in (("words", hypothesis.words), ("token_times", hypothesis.token_times)):
        if words:
            fields[name] = [dataclasses.asdict(word) for word in words]
    return {**{key: value for key, value in utterance.extra.items() if key not in fields}, **fields}


def run_info(cfg: DictConfig, recognizer: Recognizer, *, warmup_batches: int, wall_s: float) -> RunInfo:
    """How the times were taken."""
    name = torch.cuda.get_device_name(recognizer.device) if recognizer.device.type == "cuda" else platform.processor()
    settings = {field.name: getattr(recognizer.options, field.name) for field in dataclasses.fields(recognizer.options)}
    options = {"infer": f"{recognizer.infer.__module__}.infer", **settings}
    return RunInfo(
        device=f"{recognizer.device} ({name or platform.machine()})",
        dtype=cfg.dtype,
        threads=torch.get_num_threads(),
        batch_seconds=cfg.batch_seconds,
        warmup_batches=warmup_batches,
        wall_s=round(wall_s, 3),
        decode={key: value if isinstance(value, str | int | float | None) else str(value) for key, value in options.items()},
        checkpoint=str(cfg.checkpoint),
        versions={"python": platform.python_version(), "torch": torch.__version__, "speechkit": version("speechkit")},
        command=shlex.join(["speechkit", "decode", *HydraConfig.get().overrides.task]),
    )


if __name__ == "__main__":
    main()

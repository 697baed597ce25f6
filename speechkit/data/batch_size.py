"""The largest safe batch per bucket, found by trying: what `speechkit batch-size` runs.

`find_batch_sizes` is the search: longest bucket first, doubling until a try fails, then halving the interval; each
bucket starts from twice the answer of the one before. `TrainStepProbe` is the try: a real training step (features, loss,
backward, optimizer) on noise of the bucket's longest duration and random tokens of its largest count. The search knows
nothing of the probe, and the probe nothing of Lightning. Source: NeMo's OOMptimizer, in Zelasko et al. 2025, "Training
and Inference Efficiency of Encoder-Decoder Speech Models", section 3.

Shape legend: B batch, N samples, T frames, F mel bins, U tokens.
"""

from __future__ import annotations

import gc
import logging
import math
import multiprocessing
import os
import resource
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from speechkit.data.buckets import BatchSizeRow, BatchSizeTable, Bin, Bins
from speechkit.types import AsrBatch, LossOutput, Seconds

logger = logging.getLogger(__name__)

TryStep = Callable[[int, Seconds, int | None], bool | None]

_NUM_SPECIALS = 4  # blank, unk, sos, eos
_POLL_SECONDS = 0.01
_OUT_OF_MEMORY_EXIT = 86
_OOM_MESSAGES = (
    "out of memory",
    "can't allocate memory",
    "CUFFT_INTERNAL_ERROR",
    "CUFFT_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def find_batch_sizes(
    try_step: TryStep,
    bins: Bins,
    *,
    start: int = 32,
    tolerance: float = 0.05,
    max_batch_size: int = 4096,
    on_row: Callable[[BatchSizeRow], None] | None = None,
) -> BatchSizeTable:
    """Finds the largest batch of each bucket that a training step has memory for.

    Args:
        try_step: called with (batch size, longest duration in seconds, most tokens or None); returns False or raises
            an out-of-memory error when the step does not fit. Success is anything else.
        bins: the buckets.
        start: first size to try in the longest bucket.
        tolerance: stop when the answer is within this part of a size that failed.
        max_batch_size: no larger size is tried.
        on_row: called with each row as it is found, the longest bucket first.

    Returns:
        The table, in the order of the bins.

    Raises:
        ValueError: when not even one utterance fits a bucket, naming the bucket.
    """
    for name, value in (("start", start), ("tolerance", tolerance), ("max_batch_size", max_batch_size)):
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be above 0")
    found: list[BatchSizeRow] = []
    for row in reversed(bins.rows):
        fits = partial(_fits, try_step, row)
        size = largest_size(fits, start=start, tolerance=tolerance, limit=max_batch_size)
        if size == 0:
            raise ValueError(
                f"one utterance of {row.max_duration:g} s and {row.max_tokens} tokens does not fit into memory; use a "
                "smaller model, lower precision or activation checkpointing, or cut utterances shorter"
            )
        found.append(BatchSizeRow(row.max_duration, row.max_tokens, size))
        start = 2 * size
        logger.info("up to %.2f s and %s tokens: batch size %d", row.max_duration, row.max_tokens, size)
        if on_row is not None:
            on_row(found[-1])
    return BatchSizeTable(tuple(reversed(found)))


def largest_size(fits: Callable[[int], bool], *, start: int, tolerance: float, limit: int) -> int:
    """Largest size up to `limit` that fits, within `tolerance`; 0 when size 1 does not fit.

    Args:
        fits: whether a size fits; assumed to hold for all smaller sizes then.
        start: first size to try.
        tolerance: the answer is at least (1 - tolerance) times a size that does not fit, or one below it.
        limit: largest size of interest.
    """
    size, largest_fit, smallest_fail = min(start, limit), 0, limit + 1
    while smallest_fail - largest_fit > max(1, tolerance * smallest_fail if largest_fit else 0):
        if fits(size):
            largest_fit = size
        else:
            smallest_fail = size
        size = min(2 * size, limit) if smallest_fail > limit else (largest_fit + smallest_fail) // 2
    return largest_fit


def _fits(try_step: TryStep, row: Bin, batch_size: int) -> bool:
    try:
        return try_step(batch_size, row.max_duration, row.max_tokens) is not False
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, in whichever library it did."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _OOM_MESSAGES)


class TrainStepProbe:
    """Tries training steps on synthetic batches; `probe(batch_size, max_duration, max_tokens)` says whether they fit.

    On CUDA the process may use `memory_fraction` of the device, and running out of it is caught. The cache is never
    emptied between tries: training will meet the same fragmentation. On the CPU each try runs in a forked child, whose
    resident memory (that of this process, shared with it, included) is watched and must stay below the cap; a child
    that goes beyond is stopped, so that a try never takes the machine down. The child works with one thread.

    The weights are trained on noise: build a model for the search and throw it away.

    Args:
        features: `forward(wave_BN, wave_lens_B) -> (feats_BTF, feat_lens_B)` with attribute `sample_rate`.
        model: has `loss(feats_BTF, feat_lens_B, batch) -> LossOutput` and `num_views`.
        optimizer: makes the optimizer from the parameters, e.g. a partial of `torch.optim.AdamW`.
        vocab_size: random token ids are drawn below it.
        augment: `(feats_BTF, feat_lens_B) -> feats_BTF`, or None.
        device: where to try.
        precision: "fp32", or the dtype of autocast: "bf16", "fp16".
        memory_fraction: part of the device's memory, or of the free memory on the CPU, that may be used.
        max_memory_bytes: cap of the resident memory on the CPU; None derives it from `memory_fraction`.
        tokens_per_second: token count of buckets that give none.
        languages: codes that the rows of a batch take in turn, for models with language tokens; empty for unknown.
        with_targets: also give a target of the task besides the transcript, of as many tokens.
        with_prompts: also give text that came before, of as many tokens.
        imitate_ddp: also keep a buffer of the size of all gradients, as distributed training does.
        seed: of the noise.

    Raises:
        ValueError: when the model is too large for the cap by itself, or values are out of range.
    """

    def __init__(
        self,
        *,
        features: nn.Module,
        model: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        vocab_size: int,
        augment: nn.Module | None = None,
        device: str | torch.device = "cpu",
        precision: Literal["fp32", "bf16", "fp16"] = "fp32",
        memory_fraction: float = 0.9,
        max_memory_bytes: int | None = None,
        tokens_per_second: float = 12.0,
        languages: Sequence[str] = (),
        with_targets: bool = False,
        with_prompts: bool = False,
        imitate_ddp: bool = False,
        seed: int = 0,
    ) -> None:
        if not 0 < memory_fraction <= 1:
            raise ValueError(f"memory_fraction is {memory_fraction}; it must be in (0, 1]")
        if vocab_size <= _NUM_SPECIALS:
            raise ValueError(f"vocab_size is {vocab_size}; it must be above the {_NUM_SPECIALS} special tokens")
        self.device = torch.device(device)
        self.features = features.to(self.device).train()
        self.model = model.to(self.device).train()
        self.augment = None if augment is None else augment.to(self.device).train()
        self.optimizer = optimizer(self.model.parameters())
        self.sample_rate: int = features.sample_rate  # type: ignore[assignment]
        self.vocab_size, self.tokens_per_second = vocab_size, tokens_per_second
        self.streams: dict[str, Any] = {"languages": languages, "with_targets": with_targets, "with_prompts": with_prompts}
        self.autocast_dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self.generator = torch.Generator().manual_seed(seed)
        self._ddp_buffer: Tensor | None = None
        if imitate_ddp:
            size = sum(parameter.numel() for parameter in self.model.parameters())
            self._ddp_buffer = torch.zeros(size, device=self.device)
        self.max_memory_bytes = max_memory_bytes
        if self.device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(memory_fraction, self.device)
            self._step(1, 1.0, 4)  # the state of the optimizer exists before anything is measured
        elif max_memory_bytes is None:
            self.max_memory_bytes = int(memory_fraction * (_free_bytes() + _resident_bytes(os.getpid())))
        self.settings: dict[str, Any] = {
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
            "precision": precision,
            "memory_fraction": memory_fraction,
            "max_memory_bytes": self.max_memory_bytes,
        }

    def __call__(self, batch_size: int, max_duration: Seconds, max_tokens: int | None) -> bool:
        """Whether a training step on such a batch fits into memory.

        Raises:
            RuntimeError: when the step fails for another reason.
        """
        if max_tokens is None:
            max_tokens = math.ceil(max_duration * self.tokens_per_second)
        if self.device.type == "cuda":
            return self._fits_device(batch_size, max_duration, max_tokens)
        return self._fits_child(batch_size, max_duration, max_tokens)

    def _fits_device(self, batch_size: int, max_duration: Seconds, max_tokens: int) -> bool:
        fits = True
        try:
            self._step(batch_size, max_duration, max_tokens)
            torch.cuda.synchronize(self.device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        self.optimizer.zero_grad(set_to_none=True)  # the error, and the tensors its traceback held, are gone by now
        return fits

    def _fits_child(self, batch_size: int, max_duration: Seconds, max_tokens: int) -> bool:
        assert self.max_memory_bytes is not None
        context = multiprocessing.get_context("fork")
        peak = context.Value("q", 0)
        child = context.Process(target=self._run_child, args=(batch_size, max_duration, max_tokens, peak))
        child.start()
        assert child.pid is not None
        while child.is_alive():
            if _resident_bytes(child.pid) > self.max_memory_bytes:
                child.kill()
            child.join(_POLL_SECONDS)
        if child.exitcode == 1:
            raise RuntimeError(f"the training step of {batch_size} x {max_duration:g} s failed; see the traceback above")
        return child.exitcode == 0 and peak.value <= self.max_memory_bytes

    def _run_child(self, batch_size: int, max_duration: Seconds, max_tokens: int, peak: Synchronized[int]) -> None:
        torch.set_num_threads(1)  # thread pools do not survive a fork
        gc.disable()  # a collection would copy every page that is shared with the parent
        try:
            self._step(1, 1.0, 4)  # the state of the optimizer exists before the step that counts
            self._step(batch_size, max_duration, max_tokens)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            sys.exit(_OUT_OF_MEMORY_EXIT)
        high = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak.value = high if sys.platform == "darwin" else 1024 * high

    def _step(self, batch_size: int, max_duration: Seconds, max_tokens: int) -> None:
        """One training step as the trainer does it."""
        batch = synthetic_batch(
            batch_size, max_duration, max_tokens, sample_rate=self.sample_rate, vocab_size=self.vocab_size,
            generator=self.generator, device=self.device, **self.streams,
        )  # fmt: skip
        views = int(getattr(self.model, "num_views", 1))
        with torch.no_grad():
            feats_BTF, feat_lens_B = self.features(batch.wave_BN, batch.wave_lens_B)
            feats_BTF, feat_lens_B = feats_BTF.repeat(views, 1, 1), feat_lens_B.repeat(views)
            if self.augment is not None:
                feats_BTF = self.augment(feats_BTF, feat_lens_B)
        with torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None):
            output: LossOutput = self.model.loss(feats_BTF, feat_lens_B, batch)  # type: ignore[operator]
        output.loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def synthetic_batch(
    batch_size: int,
    duration: Seconds,
    num_tokens: int,
    *,
    sample_rate: int,
    vocab_size: int,
    generator: torch.Generator,
    languages: Sequence[str] = (),
    with_targets: bool = False,
    with_prompts: bool = False,
    device: str | torch.device = "cpu",
) -> AsrBatch:
    """A batch of full-length noise with random targets.

    Args:
        batch_size: B.
        duration: length of every waveform in seconds.
        num_tokens: number of target tokens of every row, U.
        sample_rate: Hz.
        vocab_size: ids are drawn from the ordinary tokens below it.
        generator: of the noise, on the CPU.
        languages: codes that the rows take in turn; empty for unknown.
        with_targets: whether what the task asks for is something else than the transcript, of as many tokens.
        with_prompts: whether text came before, of as many tokens.
        device: where the tensors go.
    """
    num_samples = math.ceil(duration * sample_rate)
    wave_BN = 0.1 * torch.randn(batch_size, num_samples, generator=generator)
    draw = partial(torch.randint, _NUM_SPECIALS, vocab_size, (batch_size, num_tokens), generator=generator)
    token_lens_B = torch.full((batch_size,), num_tokens, device=device)
    return AsrBatch(
        wave_BN=wave_BN.to(device),
        wave_lens_B=torch.full((batch_size,), num_samples, device=device),
        tokens_BU=draw().to(device),
        token_lens_B=token_lens_B,
        ids=tuple(f"synthetic-{row}" for row in range(batch_size)),
        texts=("",) * batch_size,
        langs=tuple(languages[row % len(languages)] if languages else "" for row in range(batch_size)),
        task_tokens_BU=draw().to(device) if with_targets else None,
        task_token_lens_B=token_lens_B if with_targets else None,
        prompt_tokens_BU=draw().to(device) if with_prompts else None,
        prompt_token_lens_B=token_lens_B if with_prompts else None,
    )


def _resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 where the system does not tell (the peak is still checked afterwards)."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _free_bytes() -> int:
    """Memory that is available to new allocations."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))

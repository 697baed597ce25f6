"""Decoding side by side, in one run: ours in every way, and others of the same size.

    python scripts/bench_decoding.py [--quick] [--model FOLDER --manifest FILE] [--json FILE] [--threads N] [--rounds N]

Random weights, 15 s of features, exactly 60 tokens from every system (by limits, by the weights of frames of Paraformer, by
spikes of CTC and CASS-NAT); encoder 12 x 256, decoder 6 x 256, feed-forward 1024, 1,000 labels. "CASS-NAT, equal size" halves the
feed-forward layers, of which its blocks have two each: its decoder then has as many parameters as the others.

- "AED no cache" runs the decoder over source and tokens again for every token; "no token cache" reads the source once.
- "draft 90 % right" is the greedy transcript with every tenth token wrong: what speculation costs, not what it is worth.
- Speech2Text is that of transformers, by `generate`; its encoder is a plain Transformer.
- "Whisper tiny" is a decoder alone, 4 x 384 with 51,865 labels on 1,500 frames: ours and that of CTranslate2.
- With --model (AED with a CTC head) and --manifest: real speech, one utterance at a time; CTC's draft costs decoder time.

The systems take turns within each round, in an order that rotates. Times are medians over rounds, ratios medians of those
within a round. "decoder" is all that follows the encoder, "total" both.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from speechkit.audio.io import load_audio
from speechkit.data.manifest import read_manifest
from speechkit.models.aed.infer import AedDecodeOptions
from speechkit.models.aed.model import BLANK, EOS, SOS, AedModel
from speechkit.models.cassnat import infer as cassnat
from speechkit.models.cassnat.model import CassNatModel
from speechkit.models.ctc import infer as ctc
from speechkit.models.ctc.model import CtcModel
from speechkit.models.paraformer import infer as paraformer
from speechkit.models.paraformer.model import ParaformerModel
from speechkit.nn.conformer import ConformerEncoder
from speechkit.nn.decoder import TransformerDecoder
from speechkit.pretrained import load_recognizer
from speechkit.search.attention import TokenRules, attention_greedy
from speechkit.search.attention_beam import BeamSettings, attention_beam
from speechkit.search.ctc_greedy import ctc_greedy
from speechkit.search.speculative import HypothesisDraft, speculative_greedy
from speechkit.text.tokenizers import CharTokenizer

MELS, FRAMES_PER_SECOND = 80, 100
KNOWN_DRAFT, CTC_DRAFT = "AED speculative, draft 90 % right", "AED speculative, CTC draft"
Tokens = list[tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured."""

    layers: int = 12
    dim: int = 256
    heads: int = 4
    ff_dim: int = 1024
    kernel: int = 31
    decoder_layers: int = 6
    vocab: int = 1000
    seconds: float = 15.0
    tokens: int = 60
    beam: int = 10
    whisper_vocab: int = 51865
    whisper_frames: int = 1500


class System(NamedTuple):
    """Something that decodes.

    Attributes:
        name: what it is called.
        run: features (B, T, F) and their lengths (B,) to token ids; None where the package is missing.
        encoder: the part of it whose time is not the decoder's; None when there is none.
    """

    name: str
    run: Callable[[Tensor, Tensor], Tokens] | None
    encoder: nn.Module | None = None


class Group(NamedTuple):
    """Systems that have the same work, and the work: batches of features and lengths."""

    name: str
    batch: int
    systems: list[System]
    inputs: list[tuple[Tensor, Tensor]]


class Times(NamedTuple):
    """Seconds of one run over all inputs."""

    decoder: float
    total: float


Measured = dict[tuple[str, int, str], list[Times]]  # by group, batch, system


class Stopwatch:
    """Adds up the seconds that pass inside a module."""

    def __init__(self, module: nn.Module) -> None:
        self.seconds = 0.0
        module.register_forward_pre_hook(lambda *_: self._add(-time.perf_counter()))
        module.register_forward_hook(lambda *_: self._add(time.perf_counter()))

    def _add(self, seconds: float) -> None:
        self.seconds += seconds


class FixedCount(nn.Module):
    """A predictor whose weights are scaled to a number of tokens."""

    def __init__(self, predictor: nn.Module, tokens: int) -> None:
        super().__init__()
        self.predictor, self.tokens = predictor, tokens

    def forward(self, x_BTD: Tensor, valid_BT: Tensor) -> Tensor:
        """Weights of the frames, shape (B, T)."""
        alphas_BT = self.predictor(x_BTD, valid_BT)
        return alphas_BT * (self.tokens / alphas_BT.sum(dim=1, keepdim=True))


class Spikes(nn.Module):
    """A CTC head that is sure of a number of tokens, evenly spread, and of blanks between them."""

    def __init__(self, head: nn.Linear, tokens: int) -> None:
        super().__init__()
        self.head, self.tokens = head, tokens
        self.labels = EOS + 1 + torch.arange(tokens) % (head.out_features - EOS - 1)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Logits, shape (B, T, V)."""
        logits_BTV = self.head(x_BTD)
        places = ((torch.arange(self.tokens) + 0.5) * (x_BTD.shape[1] / self.tokens)).long()
        logits_BTV[..., BLANK] += 1e3
        logits_BTV[:, places, self.labels] += 2e3
        return logits_BTV


def optional(name: str) -> ModuleType | None:
    """A package that is only compared with."""
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


class AedSearch:
    """The searches of one AED model, each from features to tokens."""

    def __init__(self, model: AedModel, rules: TokenRules, limits: Callable[[Tensor], Tensor], beam: int) -> None:
        self.model, self.rules, self.limits, self.beam = model, rules, limits, beam
        self.language = next(iter(model.language_tokens), "")
        self._known: dict[int, Tokens] = {}

    def _encode(self, feats_BTF: Tensor, feat_lens_B: Tensor) -> tuple[Tensor, Tensor, list[Any]]:
        """Frames, lengths, and what every search takes first."""
        x_BTD, lens_B = self.model.encode(feats_BTF, feat_lens_B)
        decoder, prompts_BP = self.model.decoder, self.model.prompts([self.language] * len(lens_B))
        return x_BTD, lens_B, [decoder, decoder.read(x_BTD, lens_B), prompts_BP, self.limits(lens_B)]

    def naive(self, feats_BTF: Tensor, feat_lens_B: Tensor, *, reads_again: bool) -> Tokens:
        """Greedy search without a cache of tokens; it may read the source again each time. All rows must end together."""
        x_BTD, lens_B, (decoder, source, tokens_BU, limits_B) = self._encode(feats_BTF, feat_lens_B)
        prompt = tokens_BU.shape[1]
        while tokens_BU.shape[1] == prompt or not bool((tokens_BU[:, -1] == EOS).all()):
            if reads_again:
                source = decoder.read(x_BTD, lens_B)
            said_BU = tokens_BU[:, prompt:]
            said_lens_B = torch.full_like(limits_B, said_BU.shape[1])
            log_probs_BV = self.rules.log_probs(decoder(tokens_BU, source)[:, -1], said_BU, said_lens_B, limits_B)
            tokens_BU = torch.cat((tokens_BU, log_probs_BV.argmax(dim=1, keepdim=True)), dim=1)
        return [tuple(row[prompt:-1]) for row in tokens_BU.tolist()]

    def greedy(self, feats_BTF: Tensor, feat_lens_B: Tensor) -> Tokens:
        """Greedy search with both caches."""
        _, _, given = self._encode(feats_BTF, feat_lens_B)
        return [result.tokens for result in attention_greedy(*given, rules=self.rules)]

    def beams(self, feats_BTF: Tensor, feat_lens_B: Tensor) -> Tokens:
        """Beam search."""
        _, _, given = self._encode(feats_BTF, feat_lens_B)
        return [own[0].tokens for own in attention_beam(*given, rules=self.rules, settings=BeamSettings(beam_size=self.beam))]

    def speculative(self, feats_BTF: Tensor, feat_lens_B: Tensor, *, by_ctc: bool) -> Tokens:
        """Speculative search; the draft is that of the CTC head, or of an earlier call with every tenth token wrong."""
        rows = len(feats_BTF)
        if not by_ctc and rows not in self._known:
            self._known[rows] = self.greedy(feats_BTF, feat_lens_B)
        x_BTD, lens_B, given = self._encode(feats_BTF, feat_lens_B)
        if by_ctc:
            drafts = [path.tokens for path in ctc_greedy(self.model.ctc_log_probs(x_BTD), lens_B, blank=BLANK)]
        else:
            drafts = [tuple(token - (u % 10 == 9) for u, token in enumerate(own)) for own in self._known[rows]]
        results, _ = speculative_greedy(*given, rules=self.rules, draft=HypothesisDraft(drafts, end=EOS))
        return [result.tokens for result in results]


@torch.no_grad()
def forbid(head: nn.Linear, *tokens: int) -> None:
    """Makes tokens so improbable that none of them is ever said."""
    head.bias[list(tokens)] = -1e4


def our_systems(sizes: Sizes) -> list[System]:
    """All our families behind one encoder."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"dim": sizes.dim, "num_heads": sizes.heads, "ff_dim": sizes.ff_dim, "kernel_size": sizes.kernel}
    encoder = ConformerEncoder(input_dim=MELS, num_layers=sizes.layers, **shape)
    shared: dict[str, Any] = {"encoder": encoder, "vocab_size": sizes.vocab}
    decoder: dict[str, Any] = {"decoder_heads": sizes.heads, "decoder_ff_dim": sizes.ff_dim}
    aed, frames = AedModel(**shared, **decoder, decoder_layers=sizes.decoder_layers).eval(), CtcModel(**shared).eval()
    parallel = ParaformerModel(**shared, **decoder, decoder_layers=sizes.decoder_layers).eval()
    blocks: dict[str, Any] = decoder | {"sad_layers": sizes.decoder_layers - 2, "mad_layers": 2}
    alignment, equal = (CassNatModel(**shared, **(blocks | {"decoder_ff_dim": sizes.ff_dim // n})).eval() for n in (1, 2))
    forbid(aed.decoder.head, EOS)
    for head in (parallel.decoder.head, alignment.token_head, equal.token_head):
        forbid(head, BLANK, SOS, EOS)
    parallel.predictor = FixedCount(parallel.predictor, sizes.tokens)  # type: ignore[assignment, arg-type]
    for spiked in (alignment, equal, frames):
        spiked.head = Spikes(spiked.head, sizes.tokens)  # type: ignore[assignment, arg-type]
    search = AedSearch(aed, AedDecodeOptions().rules(), lambda lens_B: torch.full_like(lens_B, sizes.tokens), sizes.beam)
    tokenizer = CharTokenizer(symbols=[chr(0x4E00 + i) for i in range(sizes.vocab - EOS - 1)])

    def infer(family: ModuleType, model: nn.Module) -> Callable[[Tensor, Tensor], Tokens]:
        return lambda feats, lens: [hyp.tokens for hyp in family.infer(model, feats, lens, tokenizer=tokenizer)]

    return [
        System("AED no cache", partial(search.naive, reads_again=True), encoder),
        System("AED no token cache", partial(search.naive, reads_again=False), encoder),
        System("AED greedy", search.greedy, encoder),
        System(KNOWN_DRAFT, partial(search.speculative, by_ctc=False), encoder),
        System(f"AED beam {sizes.beam}", search.beams, encoder),
        System("Paraformer", infer(paraformer, parallel), encoder),
        System("CASS-NAT", infer(cassnat, alignment), encoder),
        System("CASS-NAT, equal size", infer(cassnat, equal), encoder),
        System("CTC", infer(ctc, frames), encoder),
    ]


def peer_shape(dim: int, heads: int, ff_dim: int, **layers: int) -> dict[str, int]:
    """Sizes under the names that transformers has for them; layers of `encoder` and `decoder`."""
    own = {part: {"layers": num, "attention_heads": heads, "ffn_dim": ff_dim} for part, num in layers.items()}
    return {"d_model": dim} | {f"{part}_{name}": size for part, values in own.items() for name, size in values.items()}


def speech2text_systems(sizes: Sizes) -> list[System]:
    """Speech2Text of transformers: greedy and beam search of as many steps as ours."""
    names = ["Speech2Text greedy", f"Speech2Text beam {sizes.beam}"]
    transformers = optional("transformers")
    if transformers is None:
        return [System(name, None) for name in names]
    transformers.logging.set_verbosity_error()
    shape = peer_shape(sizes.dim, sizes.heads, sizes.ff_dim, encoder=sizes.layers, decoder=sizes.decoder_layers)
    config = transformers.Speech2TextConfig(vocab_size=sizes.vocab, **shape)
    torch.manual_seed(0)
    model = transformers.Speech2TextForConditionalGeneration(config).eval()
    with torch.no_grad():  # a score of 0 is never the best of a thousand: only the limit ends a transcript
        model.model.decoder.embed_tokens.weight[config.eos_token_id] = 0.0
    steps = sizes.tokens + 1  # ours reads the last token, too, to hear the end

    def run(feats_BTF: Tensor, _: Tensor, *, num_beams: int) -> Tokens:
        found = model.generate(input_features=feats_BTF, max_new_tokens=steps, num_beams=num_beams, do_sample=False)
        return [tuple(row[1:-1]) for row in found.tolist()]

    return [System(name, partial(run, num_beams=n), model.model.encoder) for name, n in zip(names, (1, sizes.beam))]


def whisper_systems(sizes: Sizes, threads: int) -> list[System]:
    """The decoder of Whisper tiny, greedy: ours, and CTranslate2's converted from random weights of transformers."""
    dim, heads, layers, prompt = 384, 6, 4, [1, 5, 6, 4]
    torch.manual_seed(0)
    shape: dict[str, Any] = {"dim": dim, "num_layers": layers, "num_heads": heads, "ff_dim": 4 * dim, "activation": "gelu"}
    decoder = TransformerDecoder(vocab_size=sizes.whisper_vocab, tie_embeddings=True, **shape).eval()
    forbid(decoder.head, EOS)
    frames_BTD = torch.randn(8, sizes.whisper_frames, dim)

    def ours(feats_BTF: Tensor, _: Tensor) -> Tokens:
        rows = len(feats_BTF)
        source = decoder.read(frames_BTD[:rows], torch.full((rows,), sizes.whisper_frames))
        prompts, limits = torch.tensor([prompt]).expand(rows, -1), torch.full((rows,), sizes.tokens)
        return [result.tokens for result in attention_greedy(decoder, source, prompts, limits, rules=TokenRules(eos=EOS))]

    systems, name = [System("AED Whisper tiny decoder", ours)], "CTranslate2 Whisper tiny decoder"
    transformers, ctranslate2 = optional("transformers"), optional("ctranslate2")
    if transformers is None or ctranslate2 is None:
        return [*systems, System(name, None)]
    settings = {f"{which}_token_id": 0 for which in ("pad", "bos", "eos", "decoder_start")}
    settings |= peer_shape(dim, heads, 4 * dim, encoder=1, decoder=layers) | {"max_source_positions": sizes.whisper_frames}
    config = transformers.WhisperConfig(vocab_size=sizes.whisper_vocab, **settings)
    model = convert_whisper(transformers.WhisperForConditionalGeneration(config), threads)

    def theirs(feats_BTF: Tensor, _: Tensor) -> Tokens:
        rows = len(feats_BTF)
        encoded = ctranslate2.StorageView.from_array(frames_BTD[:rows].numpy())
        rules = {"suppress_blank": False, "suppress_tokens": []}
        found = model.generate(encoded, [prompt] * rows, beam_size=1, max_length=2 * sizes.tokens, **rules)
        return [tuple(result.sequences_ids[0]) for result in found]

    return [*systems, System(name, theirs)]


def convert_whisper(model: Any, threads: int) -> Any:
    """A model of CTranslate2, fp32, with the weights of one of transformers; its end is never the best token."""
    loader = importlib.import_module("ctranslate2.converters.transformers").WhisperLoader()
    special = {0: "<|endoftext|>", 1: "<|startoftranscript|>", 2: "<|nospeech|>", 4: "<|notimestamps|>"}
    vocab = {special.get(i, f"<{i}>"): i for i in range(model.config.vocab_size)}
    with torch.no_grad():
        model.model.decoder.embed_tokens.weight[0] = 0.0
        spec = loader(model.eval(), SimpleNamespace(get_vocab=lambda: vocab, additional_special_tokens=[]))
    spec.validate()
    spec.optimize()
    with tempfile.TemporaryDirectory() as folder:
        spec.save(folder)
        whisper = importlib.import_module("ctranslate2.models").Whisper
        return whisper(folder, device="cpu", inter_threads=1, intra_threads=threads, compute_type="float32")


def random_groups(sizes: Sizes, batches: Sequence[int], threads: int) -> list[Group]:
    """Systems with random weights, for each size of batch."""
    systems = [*our_systems(sizes), *speech2text_systems(sizes), *whisper_systems(sizes, threads)]
    frames = int(sizes.seconds * FRAMES_PER_SECOND)
    inputs = [(torch.randn(batch, frames, MELS), torch.full((batch,), frames)) for batch in batches]
    return [Group("random", len(x[0]), systems, [x]) for x in inputs]


def trained_group(folder: Path, manifest: Path, num_utterances: int, beam: int) -> Group:
    """A trained model on utterances spread over a manifest, one at a time.

    Raises:
        SystemExit: the model is of another family, or has no CTC head.
    """
    recognizer = load_recognizer(folder, device="cpu")
    model = recognizer.model
    if not isinstance(model, AedModel) or model.head is None:
        raise SystemExit(f"--model {folder}: give an AED model with a CTC head, not {type(model).__name__}")
    utterances, inputs = read_manifest(manifest), []
    for place in np.linspace(0, len(utterances) - 1, min(num_utterances, len(utterances))).astype(int):
        utterance = utterances[place]
        span = {"start": utterance.start, "duration": utterance.duration}
        wave_N, _ = load_audio(utterance.audio_path, sample_rate=recognizer.sample_rate, **span)
        with torch.inference_mode():
            inputs.append(recognizer.features(torch.from_numpy(wave_N)[None], torch.tensor([len(wave_N)])))
    options = AedDecodeOptions()
    most = recognizer.features.frame_shift * model.subsampling_factor * options.max_tokens_per_second
    rules = options.rules(range(EOS + 1, EOS + 1 + len(recognizer.tokenizer.tags)))
    search = AedSearch(model, rules, lambda lens_B: (lens_B * most).ceil().long(), beam)
    runs: dict[str, Callable[[Tensor, Tensor], Tokens]] = {
        "AED no cache": partial(search.naive, reads_again=True),
        "AED greedy": search.greedy,
        CTC_DRAFT: partial(search.speculative, by_ctc=True),
        f"AED beam {beam}": search.beams,
    }
    return Group("trained", 1, [System(name, run, model.encoder) for name, run in runs.items()], inputs)


def measure(groups: Sequence[Group], rounds: int, sizes: Sizes) -> Measured:
    """Runs the rounds, after one to warm up and to see that all say what they should."""
    measured: Measured = defaultdict(list)
    encoders = {id(s.encoder): s.encoder for group in groups for s in group.systems if s.encoder is not None}
    watches = {key: Stopwatch(encoder) for key, encoder in encoders.items()}
    for i in range(rounds + 1):
        for group in groups:
            turn, said = i % len(group.systems), dict[str, Tokens]()
            for system in group.systems[turn:] + group.systems[:turn]:
                if system.run is None:
                    continue
                watch = watches.get(id(system.encoder))
                before, begin = 0.0 if watch is None else watch.seconds, time.perf_counter()
                with torch.inference_mode():
                    said[system.name] = [own for x in group.inputs for own in system.run(*x)]
                total = time.perf_counter() - begin
                if i:
                    encoder = 0.0 if watch is None else watch.seconds - before
                    measured[group.name, group.batch, system.name].append(Times(total - encoder, total))
            check_tokens(group, said, sizes)
        print(f"\rround {i}/{rounds}", end="" if i < rounds else "\r", flush=True, file=sys.stderr)
    return measured


def check_tokens(group: Group, said: dict[str, Tokens], sizes: Sizes) -> None:
    """Sees that the work was the same.

    Raises:
        SystemExit: a random system said too many or too few tokens, or a search not what greedy search says.
    """
    for system, tokens in said.items():
        lengths = {len(own) for own in tokens}
        if group.name == "random" and lengths != {sizes.tokens}:
            raise SystemExit(f"{system}, batch {group.batch}: {sorted(lengths)} tokens instead of {sizes.tokens}")
        if system.startswith(("AED no", "AED speculative")) and tokens != said["AED greedy"]:
            raise SystemExit(f"{group.name}, batch {group.batch}: {system} and AED greedy differ")


def to_rows(groups: Sequence[Group], measured: Measured) -> list[dict[str, Any]]:
    """Medians of all systems in seconds; None where a package is missing, or nothing but a decoder was measured."""
    rows = []
    for group in groups:
        for system in group.systems:
            times = measured.get((group.name, group.batch, system.name), [])
            decoder_s = statistics.median(t.decoder for t in times) if times else None
            total_s = statistics.median(t.total for t in times) if times and system.encoder is not None else None
            row = {"group": group.name, "batch": group.batch, "system": system.name}
            rows.append(row | {"decoder_s": decoder_s, "total_s": total_s})
    return rows


def to_ratios(measured: Measured, sizes: Sizes) -> list[dict[str, Any]]:
    """Ratios of what was measured, and whether they are as wanted; `met` is None where nothing is."""
    beam, ratios = f"AED beam {sizes.beam}", []
    pairs = [  # first over second, and what the ratio of the decoders should be
        ("AED greedy", "Speech2Text greedy", "<= 1"),
        (beam, f"Speech2Text beam {sizes.beam}", "<= 1"),
        ("AED Whisper tiny decoder", "CTranslate2 Whisper tiny decoder", ""),
        ("AED no cache", "AED greedy", ">= 5"),
        ("AED no token cache", "AED greedy", ""),
        ("AED greedy", KNOWN_DRAFT, ""),
        ("AED greedy", CTC_DRAFT, ">= 2"),
        (beam, "Paraformer", ">= 10"),
        (beam, "CASS-NAT", ">= 20"),
        (beam, "CASS-NAT, equal size", ">= 20"),
    ]
    for group, batch in sorted({key[:2] for key in measured}):
        for first, second, wanted in pairs:
            first_times, second_times = (measured.get((group, batch, name), []) for name in (first, second))
            for part in (Times._fields[: 1 if "Whisper" in first else 2]) if first_times and second_times else ():
                ratio = statistics.median(getattr(a, part) / getattr(b, part) for a, b in zip(first_times, second_times))
                meant = (batch == 1 or wanted.startswith("<")) and (group == "random" or second == CTC_DRAFT)
                asked = wanted if part == "decoder" and meant else ""
                met = (ratio <= float(asked[3:])) == asked.startswith("<") if asked else None
                what = {"group": group, "batch": batch, "first": first, "second": second, "part": part}
                ratios.append(what | {"ratio": ratio, "wanted": asked, "met": met})
    return ratios


def print_tables(rows: Sequence[dict[str, Any]], ratios: Sequence[dict[str, Any]], sizes: Sizes) -> None:
    """Rows, then ratios."""
    print(
        f"encoder {sizes.layers} x {sizes.dim}, decoder {sizes.decoder_layers} x {sizes.dim}, V={sizes.vocab}, "
        f"{sizes.seconds:g} s, {sizes.tokens} tokens, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"{'':9}{'batch':>6}  {'system':38}{'decoder ms':>14}{'total ms':>12}")
    for row in rows:
        decoder = "not installed" if row["decoder_s"] is None else f"{1e3 * row['decoder_s']:.1f}"
        total = "" if row["total_s"] is None else f"{1e3 * row['total_s']:.1f}"
        print(f"{row['group']:9}{row['batch']:6d}  {row['system']:38}{decoder:>14}{total:>12}".rstrip())
    print()
    names = {None: "", True: "met", False: "NOT MET"}
    for r in ratios:
        what, met = f"{r['group']}, batch {r['batch']}: {r['first']} / {r['second']}, {r['part']}", names[r["met"]]
        print(f"{what:86}{r['ratio']:8.2f}  {r['wanted']:>6}  {met}".rstrip())


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one round: whether all runs, not how fast")
    parser.add_argument("--model", type=Path, help="pretrained folder of an AED model with a CTC head")
    parser.add_argument("--manifest", type=Path, help="real speech for --model")
    parser.add_argument("--utterances", type=int, default=20, help="how many of --manifest (default 20)")
    parser.add_argument("--batches", default="1,8", help="of the random models, at most 8 (default 1,8)")
    parser.add_argument("--json", type=Path, help="write rows and ratios here")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default 5)")
    args = parser.parse_args(argv)
    if (args.model is None) != (args.manifest is None):
        parser.error("--model and --manifest go together")
    torch.set_num_threads(args.threads)
    small = Sizes(layers=1, dim=32, ff_dim=64, kernel=3, decoder_layers=3, vocab=50, seconds=2.0, tokens=8, beam=3,
                  whisper_vocab=64, whisper_frames=20)  # fmt: skip
    sizes = small if args.quick else Sizes()
    groups = random_groups(sizes, [int(batch) for batch in args.batches.split(",")], args.threads)
    if args.model is not None:
        groups.append(trained_group(args.model, args.manifest, args.utterances, sizes.beam))
    measured = measure(groups, 1 if args.quick else args.rounds, sizes)
    print_tables(rows := to_rows(groups, measured), ratios := to_ratios(measured, sizes), sizes)
    if args.json:
        peers = {name: version(name) for name in ("torch", "transformers", "ctranslate2") if optional(name) is not None}
        given, cpu = {name: str(value) for name, value in vars(args).items()}, torch.backends.cpu.get_cpu_capability()
        info = {"sizes": asdict(sizes), "given": given, "versions": peers, "cpu": cpu, "rows": rows, "ratios": ratios}
        args.json.write_text(json.dumps(info, indent=2) + "\n")


if __name__ == "__main__":
    main()

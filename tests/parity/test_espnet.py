"""Side by side with ESPnet, our random weights copied over: Conformer, Transformer decoder, CTC prefix scores, joint search.

Where the two differ by design, one is set to do as the other:

- ESPnet's layer norms add 1e-12 to the variance, ours 1e-5.
- Its sinusoids alternate sines and cosines over the channels, ours put all sines first.
- Its encoder multiplies its input by sqrt(D) under relative positions, too, and normalises the output of the last block
  once more.
- Its convolutions read what lies in the padding, ours read zeros: rows are compared without padding.

Shape legend: B batch, T frames, U tokens, D model, V vocab, W prefixes of an utterance.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.nn.conformer import ConformerEncoder
from speechkit.nn.decoder import TransformerDecoder
from speechkit.search.attention import TokenRules
from speechkit.search.attention_beam import BeamSettings, attention_beam
from speechkit.search.ctc_prefix_score import CtcPrefixScorer

DIM, HEADS, FF, LAYERS, VOCAB = 16, 2, 24, 2, 12
BLANK, SOS, EOS = 0, 2, 3
PAIRS = {
    "ff1.norm": "norm_ff_macaron",
    "ff1.up": "feed_forward_macaron.w_1",
    "ff1.down": "feed_forward_macaron.w_2",
    "attention_norm": "norm_mha",
    "attention.out": "self_attn.linear_out",
    "conv.norm": "norm_conv",
    "conv.depthwise": "conv_module.depthwise_conv",
    "conv.conv_norm": "conv_module.norm",
    "ff2.norm": "norm_ff",
    "ff2.up": "feed_forward.w_1",
    "ff2.down": "feed_forward.w_2",
    "norm": "norm_final",
}
DECODER_PAIRS = {
    "self_norm": "norm1",
    "self_attention.out": "self_attn.linear_out",
    "cross_norm": "norm2",
    "cross_attention.query": "src_attn.linear_q",
    "cross_attention.out": "src_attn.linear_out",
    "feed_forward.norm": "norm3",
    "feed_forward.up": "feed_forward.w_1",
    "feed_forward.down": "feed_forward.w_2",
}


def espnet(name: str) -> ModuleType:
    module: ModuleType = pytest.importorskip(name, reason="espnet, or a package that it imports, is not installed")
    return module


def randomise(module: nn.Module) -> nn.Module:
    """Makes every weight and bias count, and lets layer norms add as much as ESPnet's do."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.copy_(1.0 + 0.5 * noise.abs() if name.endswith("running_var") else tensor + 0.3 * noise)
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = 1e-12
    return module


def alternate(x: Tensor) -> Tensor:
    """Channels with all sines first brought into ESPnet's order."""
    return torch.stack(x.chunk(2, dim=-1), dim=-1).flatten(-2)


def conformer_weights(ours: ConformerEncoder) -> dict[str, Tensor]:
    """Weights of our blocks under ESPnet's names."""
    weights: dict[str, Tensor] = {}
    for name, tensor in ours.layers.state_dict().items():
        layer, _, rest = name.partition(".")
        part, _, kind = rest.rpartition(".")
        prefix = f"encoders.{layer}."
        if part in PAIRS:
            weights[f"{prefix}{PAIRS[part]}.{kind}"] = tensor
        elif part == "attention.qkv":
            for which, piece in zip("qkv", tensor.chunk(3)):
                weights[f"{prefix}self_attn.linear_{which}.{kind}"] = piece
        elif part == "attention.distance":
            weights[f"{prefix}self_attn.linear_pos.{kind}"] = alternate(tensor)
        elif part == "attention":
            weights[f"{prefix}self_attn.pos_bias_{kind[0]}"] = tensor
        else:
            target = {"conv.gate": "pointwise_conv1", "conv.out": "pointwise_conv2"}[part]
            weights[f"{prefix}conv_module.{target}.{kind}"] = tensor[..., None] if kind == "weight" else tensor
    return weights


def build_conformers(position: str) -> tuple[ConformerEncoder, Any]:
    """Ours, and ESPnet's with the same weights and no layer norm after the last block."""
    module = espnet("espnet2.asr.encoder.conformer_encoder")
    torch.manual_seed(0)
    sizes = {"dim": DIM, "num_layers": LAYERS, "num_heads": HEADS, "ff_dim": FF, "kernel_size": 5}
    ours = ConformerEncoder(input_dim=8, position=position, conv_norm="batch", dropout=0.0, **sizes)  # type: ignore[arg-type]
    relative = position == "relative"
    theirs = module.ConformerEncoder(
        input_size=DIM,
        output_size=DIM,
        attention_heads=HEADS,
        linear_units=FF,
        num_blocks=LAYERS,
        dropout_rate=0.0,
        positional_dropout_rate=0.0,
        input_layer=None,
        macaron_style=True,
        rel_pos_type="latest",
        pos_enc_layer_type="rel_pos" if relative else "abs_pos",
        selfattention_layer_type="rel_selfattn" if relative else "selfattn",
        cnn_module_kernel=5,
    )
    with torch.no_grad():
        randomise(ours)
    theirs.after_norm = nn.Identity()
    missing, unexpected = theirs.load_state_dict(conformer_weights(ours), strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    return ours, theirs


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("position", ["relative", "absolute"])
def test_conformer(position: str, training: bool) -> None:
    ours, theirs = build_conformers(position)
    ours.train(training)
    theirs.train(training)
    if position == "absolute":
        encoding = theirs.embed[0]
        encoding.pe = torch.cat((encoding.pe[..., 0::2], encoding.pe[..., 1::2]), dim=-1)
    for frames in (61, 1) if not training else (61,):  # a batch norm has no statistics of a single frame
        feats, lens = torch.randn(2, frames, 8), torch.full((2,), frames)
        x, out_lens = ours.subsampling(feats, lens)
        expected, their_lens, _ = theirs(x / math.sqrt(DIM) if position == "relative" else x, out_lens)
        result, our_lens = ours(feats, lens)
        assert our_lens.tolist() == their_lens.tolist() == [-(-frames // 4)] * 2
        torch.testing.assert_close(result, expected, atol=2e-5, rtol=1e-4)
    state, their_state = conformer_weights(ours), theirs.state_dict()
    for name in state:  # running statistics, too, have moved by the same
        torch.testing.assert_close(state[name], their_state[name], atol=1e-5, rtol=1e-4)
    if training:
        result.square().mean().backward()
        expected.square().mean().backward()
        ours_grad = ours.layers[0].attention.qkv.weight.grad
        theirs_grad = [getattr(theirs.encoders[0].self_attn, f"linear_{which}").weight.grad for which in "qkv"]
        torch.testing.assert_close(ours_grad, torch.cat(theirs_grad), atol=1e-6, rtol=1e-3)


def build_decoders(seed: int = 0) -> tuple[TransformerDecoder, Any]:
    """Ours, and ESPnet's with the same weights and our order of sinusoids."""
    module = espnet("espnet2.asr.decoder.transformer_decoder")
    torch.manual_seed(seed)
    ours = TransformerDecoder(vocab_size=VOCAB, dim=DIM, num_layers=LAYERS, num_heads=HEADS, ff_dim=FF).eval()
    theirs = module.TransformerDecoder(
        vocab_size=VOCAB, encoder_output_size=DIM, attention_heads=HEADS, linear_units=FF, num_blocks=LAYERS
    ).eval()
    with torch.no_grad():
        randomise(ours)
        ours.head.weight.mul_(3.0)  # far from ties
    weights = {"embed.0.weight": ours.embedding.weight}
    for name, part in (("after_norm", ours.norm), ("output_layer", ours.head)):
        weights |= {f"{name}.weight": part.weight, f"{name}.bias": part.bias}
    for name, tensor in ours.layers.state_dict().items():
        layer, _, rest = name.partition(".")
        part_name, _, kind = rest.rpartition(".")
        prefix = f"decoders.{layer}."
        if part_name in DECODER_PAIRS:
            weights[f"{prefix}{DECODER_PAIRS[part_name]}.{kind}"] = tensor
        else:
            attention, which = {"self_attention.qkv": ("self_attn", "qkv"), "cross_attention.key_value": ("src_attn", "kv")}[
                part_name
            ]
            for letter, piece in zip(which, tensor.chunk(len(which))):
                weights[f"{prefix}{attention}.linear_{letter}.{kind}"] = piece
    theirs.load_state_dict(weights)
    encoding = theirs.embed[1]
    encoding.pe = torch.cat((encoding.pe[..., 0::2], encoding.pe[..., 1::2]), dim=-1)
    return ours, theirs


@torch.no_grad()
def test_decoder_all_at_once() -> None:
    ours, theirs = build_decoders()
    frames, frame_lens = torch.randn(3, 9, DIM), torch.tensor([9, 1, 5])
    tokens, token_lens = torch.randint(0, VOCAB, (3, 7)), torch.tensor([7, 1, 4])
    expected, _ = theirs(frames, frame_lens, tokens, token_lens)
    logits = ours(tokens, ours.read(frames, frame_lens))
    valid = torch.arange(7) < token_lens[:, None]
    torch.testing.assert_close(logits[valid], expected[valid], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_decoder_token_by_token() -> None:
    ours, theirs = build_decoders()
    frames, tokens = torch.randn(3, 9, DIM), torch.randint(0, VOCAB, (3, 7))
    source, cache = ours.read(frames, torch.full((3,), 9)), ours.start(3)
    states: list[Any] = [None] * 3
    for n in range(1, 8):
        expected, states = theirs.batch_score(tokens[:, :n], states, frames)
        log_probs = ours.extend(tokens[:, n - 1 : n], cache, source)[:, -1].log_softmax(dim=-1)
        torch.testing.assert_close(log_probs, expected, atol=2e-5, rtol=1e-4)


def assert_equal_scores(ours: Tensor, theirs: Tensor) -> None:
    """ESPnet's impossible is some -1e10, ours is minus infinity."""
    torch.testing.assert_close(ours, theirs.masked_fill(theirs < -1e8, -torch.inf), atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_ctc_prefix_scores_of_a_batch(seed: int) -> None:
    """Prefixes grow at random, more of them than frames allow in short rows; repeated tokens are common."""
    module = espnet("espnet.nets.ctc_prefix_score")
    generator = torch.Generator().manual_seed(seed)
    lens, width, eos = [8, 1, 5], 3, 5
    log_probs = (2.0 * torch.randn(3, 8, eos + 1, generator=generator)).double().log_softmax(dim=-1)
    theirs = module.CTCPrefixScoreTH(log_probs.clone(), lens, BLANK, eos)
    ours = CtcPrefixScorer(log_probs, torch.tensor(lens), blank=BLANK)
    state, their_state = ours.start(), None
    prefixes = [[eos] for _ in range(3 * width)]
    for step in range(6):
        scores = ours.score(state, torch.arange(1, eos).expand(*state.last.shape, -1))
        _, new_state = theirs(prefixes, their_state)
        expected = new_state[1].unflatten(0, (3, width))
        assert_equal_scores(scores.expand(3, width, -1), expected[..., 1:eos])
        assert_equal_scores(ours.score_end(state).expand(3, width), expected[..., eos])
        parents = torch.randint(0, width if step else 1, (3, width), generator=generator)
        chosen = torch.randint(1, eos, (3, width), generator=generator)
        state = ours.advance(state, parents, chosen)
        their_state = theirs.index_select_state(new_state, parents * (eos + 1) + chosen)
        prefixes = [
            [*prefixes[row * width + int(parents[row, w])], int(chosen[row, w])] for row in range(3) for w in range(width)
        ]


def test_ctc_prefix_scores_of_one_utterance() -> None:
    module = espnet("espnet.nets.ctc_prefix_score")
    import numpy as np

    eos, candidates = 5, np.arange(1, 6)
    log_probs = torch.randn(1, 9, eos + 1, generator=torch.Generator().manual_seed(0)).log_softmax(dim=-1)
    theirs = module.CTCPrefixScore(log_probs[0].numpy(), BLANK, eos, np)
    ours = CtcPrefixScorer(log_probs, torch.tensor([9]), blank=BLANK)
    state, their_state, prefix = ours.start(), theirs.initial_state(), [eos]
    for token in (2, 2, 4, 1, 1):
        expected, states = theirs(prefix, candidates, their_state)
        scores = torch.cat((ours.score(state, torch.arange(1, eos)[None, None])[0, 0], ours.score_end(state)[0]))
        torch.testing.assert_close(scores.float(), torch.from_numpy(expected), atol=1e-4, rtol=1e-5)
        state = ours.advance(state, torch.zeros(1, 1, dtype=torch.long), torch.tensor([[token]]))
        their_state = states[token - 1]
        prefix.append(token)


@torch.no_grad()
@pytest.mark.parametrize("weight", [0.3, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_joint_search(seed: int, weight: float) -> None:
    search = espnet("espnet.nets.batch_beam_search")
    scorers = espnet("espnet.nets.scorers.ctc")
    ctc = espnet("espnet2.asr.ctc").CTC(odim=VOCAB, encoder_output_size=DIM)
    decoder, theirs = build_decoders(seed)
    ctc.ctc_lo.weight.mul_(4.0)
    ctc.ctc_lo.bias[BLANK] += 3.0  # transcripts are a good deal shorter than the frames,
    for head in (decoder.head, theirs.output_layer):
        head.bias[EOS] -= 6.0  # but not empty
    frames = torch.randn(1, 16, DIM)
    beam_search = search.BatchBeamSearch(
        scorers={"decoder": theirs, "ctc": scorers.CTCPrefixScorer(ctc=ctc, eos=EOS)},
        weights={"decoder": 1.0 - weight, "ctc": weight},
        beam_size=10,
        vocab_size=VOCAB,
        sos=SOS,
        eos=EOS,
    )
    expected = beam_search(frames[0])[0]
    lens = torch.tensor([16])
    [[result]] = attention_beam(
        decoder,
        decoder.read(frames, lens),
        torch.tensor([[SOS]]),
        lens,
        rules=TokenRules(eos=EOS, never=(BLANK,)),
        settings=BeamSettings(beam_size=10, ctc_weight=weight, pre_beam=None),
        ctc=CtcPrefixScorer(F.log_softmax(ctc.ctc_lo(frames), dim=-1), lens, blank=BLANK),
    )
    assert 0 < len(result.tokens) < 16
    assert [SOS, *result.tokens, EOS] == expected.yseq.tolist()
    assert result.score == pytest.approx(float(expected.score), abs=1e-3)
    assert result.att_score == pytest.approx(float(expected.scores["decoder"]), abs=1e-3)
    assert result.ctc_score == pytest.approx(float(expected.scores["ctc"]), abs=1e-3)

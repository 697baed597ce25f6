"""Side by side with transformers, our random weights copied over: the decoders of Speech2Text and Whisper.

Where they differ by design, they are set to do as ours: their tables of positions hold our sinusoids; Whisper's keys have no
bias, its embeddings are not scaled, and its output layer has the weights of the embedding.

Shape legend: B batch, T frames, U tokens, D model, V vocab.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.nn.decoder import TransformerDecoder
from speechkit.nn.positional import sinusoids
from speechkit.search.attention import AttentionResult, TokenRules, attention_greedy
from speechkit.search.attention_beam import BeamSettings, attention_beam

DIM, HEADS, FF, LAYERS, VOCAB, FRAMES, ROOM = 16, 2, 24, 2, 12, 9, 32
PAD, SOS, EOS = 1, 2, 3
PAIRS = {
    "self_norm": "self_attn_layer_norm",
    "self_attention.out": "self_attn.out_proj",
    "cross_norm": "encoder_attn_layer_norm",
    "cross_attention.query": "encoder_attn.q_proj",
    "cross_attention.out": "encoder_attn.out_proj",
    "feed_forward.norm": "final_layer_norm",
    "feed_forward.up": "fc1",
    "feed_forward.down": "fc2",
}
SPLITS = {"self_attention.qkv": ("self_attn", "qkv"), "cross_attention.key_value": ("encoder_attn", "kv")}
FAMILIES = ["speech_to_text", "whisper"]


def random_decoder(family: str, seed: int) -> TransformerDecoder:
    """Ours, with weights that the other can have, too."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"dim": DIM, "num_layers": LAYERS, "num_heads": HEADS, "ff_dim": FF}
    if family == "whisper":
        sizes["activation"] = "gelu"
    else:
        sizes["tie_embeddings"] = True
    ours = TransformerDecoder(vocab_size=VOCAB, **sizes).eval()
    for weight in ours.parameters():
        weight += 0.3 * torch.randn_like(weight)
    ours.head.bias.zero_()
    ours.norm.weight.copy_(2.0 * torch.randn(DIM))  # or what was said last would be said again
    ours.norm.bias += 2.0 * F.normalize(ours.embedding.weight[EOS], dim=0)  # and the end hardly ever
    if family == "whisper":
        ours.head.weight.copy_(ours.embedding.weight * math.sqrt(DIM))
        for layer in ours.layers:
            layer.self_attention.qkv.bias[DIM : 2 * DIM] = 0.0
            layer.cross_attention.key_value.bias[:DIM] = 0.0
    return ours


def layer_weights(ours: TransformerDecoder) -> dict[str, Tensor]:
    """Weights of our layers under the names of transformers."""
    weights = {"layer_norm.weight": ours.norm.weight, "layer_norm.bias": ours.norm.bias}
    for name, tensor in ours.layers.state_dict().items():
        layer, _, rest = name.partition(".")
        part, _, kind = rest.rpartition(".")
        if part in PAIRS:
            weights[f"layers.{layer}.{PAIRS[part]}.{kind}"] = tensor
        else:
            attention, letters = SPLITS[part]
            for letter, piece in zip(letters, tensor.chunk(len(letters))):
                weights[f"layers.{layer}.{attention}.{letter}_proj.{kind}"] = piece
    return weights


@torch.no_grad()
def build(family: str, seed: int = 0) -> tuple[TransformerDecoder, Any]:
    """Ours, and a whole model of transformers whose decoder has the same weights."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"d_model": DIM, "decoder_layers": LAYERS, "decoder_attention_heads": HEADS, "decoder_ffn_dim": FF}
    sizes |= {"encoder_layers": 1, "encoder_attention_heads": HEADS, "encoder_ffn_dim": FF, "max_target_positions": ROOM}
    tokens = {"pad_token_id": PAD, "bos_token_id": SOS, "eos_token_id": EOS, "decoder_start_token_id": SOS}
    ours, positions = random_decoder(family, seed), sinusoids(torch.arange(ROOM), DIM)
    if family == "whisper":
        config = transformers.WhisperConfig(vocab_size=VOCAB, **sizes, **tokens)
        model = transformers.WhisperForConditionalGeneration(config).eval()
        extra = {"embed_tokens.weight": ours.head.weight, "embed_positions.weight": positions}
    else:
        config = transformers.Speech2TextConfig(vocab_size=VOCAB, conv_channels=DIM, **sizes, **tokens)
        model = transformers.Speech2TextForConditionalGeneration(config).eval()
        extra = {"embed_tokens.weight": ours.embedding.weight}
        model.model.decoder.embed_positions.weights[PAD + 1 : PAD + 1 + ROOM] = positions
    missing, unexpected = model.model.decoder.load_state_dict(layer_weights(ours) | extra, strict=False)
    assert not missing
    assert all(name.endswith("k_proj.bias") for name in unexpected), unexpected  # zero, and Whisper has none
    return ours, model


def tokens_of(batch: int, length: int) -> Tensor:
    """Random tokens; padding is none of them, for Speech2Text does not count it as a position."""
    tokens = torch.randint(PAD + 1, VOCAB, (batch, length))
    tokens[:, 0] = SOS
    return tokens


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_all_at_once(family: str) -> None:
    ours, theirs = build(family)
    frames, tokens = torch.randn(3, FRAMES, DIM), tokens_of(3, 7)
    expected = theirs(encoder_outputs=(frames,), decoder_input_ids=tokens).logits
    logits = ours(tokens, ours.read(frames, torch.full((3,), FRAMES)))
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pieces", [[1, 1, 1, 1, 1], [3, 1, 2]])
def test_piece_by_piece(family: str, pieces: list[int]) -> None:
    ours, theirs = build(family)
    frames, tokens = torch.randn(3, FRAMES, DIM), tokens_of(3, sum(pieces))
    source, cache, past = ours.read(frames, torch.full((3,), FRAMES)), ours.start(3, room=1), None
    for piece in tokens.split(pieces, dim=1):
        output = theirs(encoder_outputs=(frames,), decoder_input_ids=piece, past_key_values=past, use_cache=True)
        past = output.past_key_values
        torch.testing.assert_close(ours.extend(piece, cache, source), output.logits, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_sources_of_different_lengths() -> None:
    ours, theirs = build("speech_to_text")
    frames, lens, tokens = torch.randn(3, FRAMES, DIM), torch.tensor([FRAMES, 1, 4]), tokens_of(3, 7)
    mask = (torch.arange(FRAMES) < lens[:, None]).long()
    hidden = theirs.model.decoder(input_ids=tokens, encoder_hidden_states=frames, encoder_attention_mask=mask)
    expected = theirs.lm_head(hidden.last_hidden_state)
    torch.testing.assert_close(ours(tokens, ours.read(frames, lens)), expected, atol=2e-5, rtol=1e-4)


def assert_same_tokens(results: list[AttentionResult], sequences: Tensor) -> None:
    """What stands between start and end is the same."""
    for result, sequence in zip(results, sequences.tolist()):
        assert sequence[0] == SOS
        said = sequence[1:]
        assert list(result.tokens) == (said[: said.index(EOS)] if EOS in said else said)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_search(family: str) -> None:
    ours, theirs = build(family, seed=1)
    frames, most = 4.0 * torch.randn(6, FRAMES, DIM), 20
    if family == "whisper":  # its `generate` adds rules of its own
        sequences, past = torch.full((6, 1), SOS), None
        for _ in range(most):
            kept = {"past_key_values": past, "use_cache": True}
            output = theirs(encoder_outputs=(frames,), decoder_input_ids=sequences[:, -1:], **kept)
            logits, past = output.logits[:, -1], output.past_key_values
            logits[:, PAD] = -torch.inf
            sequences = torch.cat((sequences, logits.argmax(dim=1, keepdim=True)), dim=1)
    else:
        sequences = generate(theirs, frames, most)
    source, prompts = ours.read(frames, torch.full((6,), FRAMES)), torch.full((6, 1), SOS)
    results = attention_greedy(ours, source, prompts, torch.full((6,), most), rules=TokenRules(eos=EOS, never=(PAD,)))
    assert_same_tokens(results, sequences)
    assert len({len(result.tokens) for result in results}) > 1, "rows end at different places"


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_beam_search(seed: int) -> None:
    ours, theirs = build("speech_to_text", seed=seed)
    frames, most = 4.0 * torch.randn(6, FRAMES, DIM), 20
    sequences = generate(theirs, frames, most, num_beams=4, length_penalty=0.0, early_stopping="never")
    results = attention_beam(
        ours,
        ours.read(frames, torch.full((6,), FRAMES)),
        torch.full((6, 1), SOS),
        torch.full((6,), most),
        rules=TokenRules(eos=EOS, never=(PAD,)),
        settings=BeamSettings(beam_size=4),
    )
    ended = [row for row, sequence in enumerate(sequences.tolist()) if EOS in sequence]  # the others are cut off there, not ended
    assert len(ended) > 1
    assert_same_tokens([results[row][0] for row in ended], sequences[ended])


def generate(model: Any, frames: Tensor, most: int, **search: Any) -> Tensor:
    """Tokens as `generate` finds them."""
    outputs = pytest.importorskip("transformers.modeling_outputs").BaseModelOutput(last_hidden_state=frames)
    settings = {"do_sample": False, "suppress_tokens": [PAD], "max_new_tokens": most, **search}
    sequences: Tensor = model.generate(encoder_outputs=outputs, **settings)
    return sequences

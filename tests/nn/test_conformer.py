from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.nn.conformer import ConformerEncoder

SMALL: dict[str, Any] = {"input_dim": 20, "dim": 16, "num_layers": 2, "num_heads": 2, "ff_dim": 24, "kernel_size": 7}


def build(**settings: Any) -> ConformerEncoder:
    torch.manual_seed(0)
    encoder = ConformerEncoder(**{**SMALL, "dropout": 0.0, **settings})
    for module in encoder.modules():  # running statistics and biases away from their trivial start
        if hasattr(module, "running_mean"):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
        if hasattr(module, "u_HK"):
            torch.nn.init.normal_(module.u_HK)
            torch.nn.init.normal_(module.v_HK)
    return encoder.eval()


VARIANTS = [
    {"position": position, "subsampling": subsampling, "conv_norm": norm, **chunks}
    for position, (subsampling, norm, chunks) in product(
        ("rope", "relative", "absolute", "none"),
        (
            ("conv2d4", "layer", {}),
            ("dw8", "batch", {}),
            ("dw4", "layer", {"chunk_size": 3, "left_chunks": 1}),
            ("dw4", "batch", {"chunk_size": 2}),
            ("conv2d4", "batch", {"attention_reach": 3}),
        ),
    )
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
@settings(max_examples=6, deadline=None)
@given(lens=st.lists(st.integers(1, 61), min_size=2, max_size=4), extra=st.integers(0, 20))
@torch.no_grad()
def test_utterances_do_not_depend_on_padding_or_mates(variant: dict[str, Any], lens: list[int], extra: int) -> None:
    encoder = build(**variant)
    feats = torch.randn(len(lens), max(lens) + extra, 20)
    for row, length in enumerate(lens):
        feats[row, length:] = 1e4  # must not be read
    x, x_lens = encoder(feats, torch.tensor(lens))
    assert torch.equal(x_lens, encoder.output_lengths(torch.tensor(lens)))
    for row, length in enumerate(lens):
        alone, alone_lens = encoder(feats[row : row + 1, :length], torch.tensor([length]))
        assert alone_lens.item() == x_lens[row] == alone.shape[1]
        torch.testing.assert_close(x[row, : x_lens[row]], alone[0], atol=1e-5, rtol=1e-5)
        assert x[row, x_lens[row] :].abs().sum() == 0


@pytest.mark.parametrize("length", [*range(1, 21)])
@torch.no_grad()
def test_very_short_inputs_give_frames(length: int) -> None:
    encoder = build(subsampling="dw8")
    x, x_lens = encoder(torch.randn(1, length, 20), torch.tensor([length]))
    assert x.shape == (1, -(-length // 8), 16)
    assert x_lens.item() == x.shape[1]
    assert x.isfinite().all()


@torch.no_grad()
def test_no_frames_at_all() -> None:
    encoder = build()
    x, x_lens = encoder(torch.zeros(2, 0, 20), torch.tensor([0, 0]))
    assert x_lens.tolist() == [0, 0]
    assert x.abs().sum() == 0
    x, x_lens = encoder(torch.randn(2, 9, 20), torch.tensor([0, 9]))
    assert x_lens.tolist() == [0, 3]
    assert x.isfinite().all()


@pytest.mark.parametrize("position", ["rope", "relative", "absolute", "none"])
def test_gradients_reach_every_parameter_and_no_padding(position: str) -> None:
    encoder = build(position=position, conv_norm="batch", dropout=0.1, layer_drop=0.2).train()
    feats = torch.randn(4, 40, 20, requires_grad=True)
    x, _ = encoder(feats, torch.tensor([40, 21, 7, 33]))
    (x * torch.randn_like(x)).sum().backward()
    unused = [name for name, p in encoder.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    # before batch norm a bias changes nothing, so rounding alone decides whether its gradient is exactly zero
    assert [name for name in unused if not name.endswith("depthwise.bias")] == []
    assert feats.grad is not None
    assert feats.grad[1, 21:].abs().max() == 0
    assert feats.grad[1, 20].abs().max() > 0


@torch.no_grad()
def test_chunks_limit_what_a_frame_sees() -> None:
    encoder = build(chunk_size=2, left_chunks=1, num_layers=1, kernel_size=3)
    feats = torch.randn(1, 48, 20)
    before, _ = encoder(feats, torch.tensor([48]))
    changed = feats.clone()
    changed[0, 24:28] += 1.0  # under output frames 6 and 7, the chunk 3
    after, _ = encoder(changed, torch.tensor([48]))
    differs = ((after - before).abs().amax(-1) > 1e-6)[0].nonzero().flatten().tolist()
    assert differs == [6, 7, 8, 9, 10, 11]  # chunks 3 and 4 attend to it, then two frames of causal convolution


@torch.no_grad()
def test_attention_reach_bounds_what_a_frame_sees() -> None:
    encoder = build(attention_reach=2, num_layers=2, kernel_size=3)
    feats = torch.randn(1, 80, 20)
    before, _ = encoder(feats, torch.tensor([80]))
    changed = feats.clone()
    changed[0, 40:44] += 1.0  # seen by output frames 9 to 11 of the subsampling
    after, _ = encoder(changed, torch.tensor([80]))
    differs = ((after - before).abs().amax(-1) > 1e-6)[0].nonzero().flatten().tolist()
    assert differs[0] >= 9 - 2 * 3, "each layer reaches 2 frames by attention and 1 by convolution"
    assert differs[-1] <= 11 + 2 * 3
    told, _ = encoder(feats, torch.tensor([80]), prefix_BPD=torch.randn(1, 1, 16))
    otherwise, _ = encoder(feats, torch.tensor([80]), prefix_BPD=torch.randn(1, 1, 16))
    assert ((told - otherwise).abs().amax(-1) > 1e-6).all(), "what stands before the audio is seen from everywhere"


@torch.no_grad()
def test_attention_reach_equals_full_context_when_it_covers_everything() -> None:
    full, near = build(), build(attention_reach=50)
    near.load_state_dict(full.state_dict())
    feats, lens = torch.randn(2, 40, 20), torch.tensor([40, 30])
    torch.testing.assert_close(full(feats, lens)[0], near(feats, lens)[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_chunk_equals_full_context_when_it_covers_everything() -> None:
    torch.manual_seed(0)
    full, chunked = build(kernel_size=1), build(kernel_size=1, chunk_size=50)
    chunked.load_state_dict(full.state_dict())
    feats, lens = torch.randn(2, 40, 20), torch.tensor([40, 30])
    torch.testing.assert_close(full(feats, lens)[0], chunked(feats, lens)[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_tap_sees_and_replaces_every_layer() -> None:
    encoder = build(num_layers=3)
    feats, lens = torch.randn(2, 24, 20), torch.tensor([24, 20])
    seen: list[int] = []

    def tap(layer: int, x_BTD: Tensor, lens_B: Tensor) -> Tensor:
        seen.append(layer)
        assert lens_B.tolist() == [6, 5]
        return x_BTD * 0 if layer == 3 else x_BTD

    x, _ = encoder(feats, lens, tap=tap)
    assert seen == [1, 2, 3]
    assert x.abs().sum() == 0


def test_layer_drop_skips_blocks_of_single_utterances_in_training_only() -> None:
    encoder = build(num_layers=1, layer_drop=0.5).train()
    feats, lens = torch.randn(64, 8, 20), torch.full((64,), 8)
    with torch.no_grad():
        x, _ = encoder(feats, lens)
        kept, _ = encoder.eval()(feats, lens)
        skipped, _ = encoder.subsampling(feats, lens)
    is_kept = (x - kept).abs().amax((1, 2)) < 1e-6
    is_skipped = (x - skipped).abs().amax((1, 2)) < 1e-6
    assert (is_kept ^ is_skipped).all()
    assert 16 < is_kept.sum() < 48


def test_absolute_positions_and_none_differ_on_shuffled_frames() -> None:
    lens = torch.tensor([32])
    for position, sees_order in (("none", False), ("absolute", True), ("rope", True), ("relative", True)):
        encoder = build(position=position, kernel_size=1)
        encoder.subsampling.forward = lambda feats, lens: (feats, lens)  # type: ignore[method-assign]
        frames = torch.randn(1, 32, 16)
        order = torch.randperm(32)
        with torch.no_grad():
            plain, shuffled = encoder(frames, lens)[0][:, order], encoder(frames[:, order], lens)[0]
        assert torch.allclose(plain, shuffled, atol=1e-4) != sees_order


@pytest.mark.parametrize("position", ["rope", "relative"])
def test_autocast_to_bfloat16_stays_finite_and_near(position: str) -> None:
    encoder = build(position=position, conv_norm="batch").train()
    feats, lens = torch.randn(2, 40, 20), torch.tensor([40, 17])
    exact, _ = encoder(feats, lens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x, _ = encoder(feats, lens)
    assert x.isfinite().all()
    assert (x.float() - exact).abs().max() < 0.3
    x.float().square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.slow
def test_traced_graph_has_no_breaks_and_equals_eager() -> None:
    encoder = build(num_layers=1, chunk_size=4)
    feats, lens = torch.randn(2, 40, 20), torch.tensor([40, 17])
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(feats, lens)[0], encoder(feats, lens)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel_size": 8}, "kernel_size=8 must be odd"),
        ({"conv_norm": "group"}, "'group' is unknown"),
        ({"chunk_size": 0}, "chunk_size=0 must be at least 1"),
        ({"left_chunks": 2}, "left_chunks=2 needs chunk_size"),
        ({"layer_drop": 1.0}, "layer_drop=1"),
        ({"attention_reach": 4, "chunk_size": 2}, "attention_reach=4"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_equals_torchaudio_conformer() -> None:
    torchaudio_models = pytest.importorskip("torchaudio.models")
    from speechkit.models.ctc.convert import layers_from_torchaudio

    theirs = torchaudio_models.Conformer(16, 2, 24, 2, 7)
    ours = build(position="none", conv_norm="batch")
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours.layers.load_state_dict(layers_from_torchaudio(theirs.state_dict()))
    x = torch.randn(3, 11, 16)
    ours.subsampling.forward = lambda feats, lens: (feats, lens)  # type: ignore[method-assign]
    lens = torch.tensor([11, 11, 11])
    for training in (False, True):
        ours.train(training), theirs.train(training)
        torch.testing.assert_close(ours(x, lens)[0], theirs(x, lens)[0], atol=2e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="is not a weight of torchaudio"):
        layers_from_torchaudio({"head.weight": x})

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.kernels.ctc_align import ctc_viterbi
from speechkit.models.paraformer.infer import infer
from speechkit.models.paraformer.model import ParaformerModel
from speechkit.nn.conformer import ConformerEncoder
from speechkit.nn.positional import sinusoids
from speechkit.text.tokenizers import CharTokenizer
from speechkit.types import AsrBatch

VOCAB, DIM = 9, 16


def build(*, layers: int = 2, encoder: dict[str, Any] | None = None, **settings: Any) -> ParaformerModel:
    torch.manual_seed(0)
    sizes = {"input_dim": 12, "dim": DIM, "num_heads": 2, "ff_dim": 32, "kernel_size": 5, "dropout": 0.0}
    stack = ConformerEncoder(num_layers=layers, **{**sizes, **(encoder or {})})
    small = {"decoder_layers": 2, "decoder_heads": 2, "decoder_ff_dim": 32, "dropout": 0.0}
    return ParaformerModel(encoder=stack, vocab_size=VOCAB, **{**small, **settings})


def make_batch(token_lens: list[int], *, lowest: int = 1) -> AsrBatch:
    size = len(token_lens)
    tokens = torch.zeros(size, max(token_lens), dtype=torch.long)
    for row, length in enumerate(token_lens):
        tokens[row, :length] = torch.randint(lowest, VOCAB, (length,), generator=torch.Generator().manual_seed(row))
    empty = torch.zeros(size, 0)
    ids = tuple(map(str, range(size)))
    return AsrBatch(empty, torch.zeros(size), tokens, torch.tensor(token_lens), ids, ids, ids)


def select(batch: AsrBatch, row: int) -> AsrBatch:
    length = batch.token_lens_B[row : row + 1]
    return batch._replace(tokens_BU=batch.tokens_BU[row : row + 1, : int(length)], token_lens_B=length)


FEATS, LENS = torch.randn(3, 80, 12, generator=torch.Generator().manual_seed(1)), torch.tensor([80, 55, 61])


def token_embeddings(alphas: Tensor, frames: Tensor, count: int) -> Tensor:
    """Integrates the scaled weights of one utterance, a frame at a time."""
    alphas = alphas.double() * (count / alphas.double().sum())
    tokens, summed = torch.zeros(count, frames.shape[1]), 0.0
    for alpha, frame in zip(alphas.tolist(), frames):
        for token in range(count):
            overlap = min(summed + alpha, token + 1) - max(summed, token)
            tokens[token] += max(overlap, 0.0) * frame
        summed += alpha
    return tokens


def decode_alone(model: ParaformerModel, embeddings: Tensor, frames: Tensor) -> Tensor:
    """Scores of one utterance's tokens without any mask, layer by layer."""
    x = embeddings[None] + sinusoids(torch.arange(len(embeddings)), DIM)
    for layer in model.decoder.layers:
        y = layer.self_norm(x)
        x = x + layer.self_attention(y)
        key, value = layer.cross_attention.keys_values(frames[None])
        x = x + layer.cross_attention(layer.cross_norm(x), key, value)
        x = x + layer.feed_forward(x)
    return model.decoder.head(model.decoder.norm(x))[0]


@torch.no_grad()
def test_loss_equals_one_utterance_at_a_time() -> None:
    model, batch = build(inter_layers=[1], inter_weight=0.25).eval(), make_batch([5, 3, 4])
    x, lens = model.encoder(FEATS, LENS)
    alphas = model.predictor(x, torch.arange(x.shape[1]) < lens[:, None])
    ctc = ce = quantity = torch.tensor(0.0)
    for row in range(3):
        tokens, frames = select(batch, row).tokens_BU[0], x[row, : lens[row]]
        logits = decode_alone(model, token_embeddings(alphas[row, : lens[row]], frames, len(tokens)), frames)
        ce = ce + F.cross_entropy(logits, tokens, label_smoothing=0.1, reduction="sum")
        quantity = quantity + (alphas[row].sum() - len(tokens)).abs()
        assert model.head is not None
        log_probs, target_lens = model.head(frames)[:, None].log_softmax(-1), batch.token_lens_B[row : row + 1]
        ctc = ctc + F.ctc_loss(log_probs, tokens[None], lens[row : row + 1], target_lens, reduction="sum")
    out = model.loss(FEATS, LENS, batch)
    assert set(out.parts) == {"ctc", "inter_ctc", "infeasible", "ce", "accuracy", "quantity", "length_accuracy"}
    torch.testing.assert_close(out.parts["ce"], ce / 12, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.parts["quantity"], quantity / 12, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.parts["ctc"], ctc / 12, atol=1e-5, rtol=1e-5)
    whole_ctc = 0.75 * ctc / 12 + 0.25 * out.parts["inter_ctc"]
    torch.testing.assert_close(out.loss, 0.3 * whole_ctc + 0.7 * ce / 12 + quantity / 12, atol=1e-5, rtol=1e-5)
    assert out.num_targets == 12


@pytest.mark.parametrize("ratio", [0.4, 1.0])
def test_the_second_pass_sees_exactly_the_share_of_what_the_first_got_wrong(ratio: float) -> None:
    model, batch = build(glancing_ratio=ratio).train(), make_batch([9, 0, 1, 6])
    feats, lens = torch.randn(4, 160, 12), torch.tensor([160, 80, 100, 121])
    passes: list[tuple[Tensor, Tensor]] = []
    model.decoder.register_forward_hook(lambda module, inputs, output: passes.append((inputs[0], output)))
    out = model.loss(feats, lens, batch)
    assert len(passes) == 2
    (plain, first), (mixed, _) = passes
    valid = torch.arange(9) < batch.token_lens_B[:, None]
    hits = (first.argmax(2) == batch.tokens_BU) & valid
    changed = (mixed != plain).any(2)
    assert not changed[~valid].any()
    assert changed.sum(1).tolist() == [int((n - h) * ratio) for n, h in zip(batch.token_lens_B.tolist(), hits.sum(1).tolist())]
    assert changed.any()
    torch.testing.assert_close(mixed[changed], model.embedding(batch.tokens_BU)[changed] * math.sqrt(DIM))
    torch.testing.assert_close(out.parts["hits"], hits.sum() / 16)
    passes.clear()
    model.eval().loss(feats, lens, batch)
    assert len(passes) == 1


@pytest.mark.parametrize("settings", [{}, {"ctc_weight": 0.0}, {"encoder": {"conv_norm": "batch", "position": "relative"}}])
def test_nothing_depends_on_padding_or_mates(settings: dict[str, Any]) -> None:
    model, batch = build(**settings).eval(), make_batch([4, 2, 3])
    whole, together = model.loss(FEATS, LENS, batch), model.predict(FEATS, LENS)
    total, quantity = torch.tensor(0.0), torch.tensor(0.0)
    for row in range(3):
        feats, lens = FEATS[row : row + 1, : LENS[row]], LENS[row : row + 1]
        own = model.loss(feats, lens, select(batch, row))
        total, quantity = total + own.loss * own.num_targets, quantity + own.parts["quantity"] * own.num_targets
        alone = model.predict(feats, lens)
        count, frames = int(alone.token_lens_B[0]), int(alone.frame_lens_B[0])
        assert count > 0
        assert together.token_lens_B[row] == count
        torch.testing.assert_close(together.log_probs_BUV[row, :count], alone.log_probs_BUV[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.alphas_BT[row, :frames], alone.alphas_BT[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole.loss * 9, total, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(whole.parts["quantity"] * 9, quantity, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"mwer_weight": 1.0, "ce_weight": 0.01, "inter_layers": [1]}])
def test_gradients_reach_every_parameter(settings: dict[str, Any]) -> None:
    model, batch = build(glancing_ratio=1.0, **settings).train(), make_batch([5, 3, 4])
    out = model.loss(FEATS, LENS, batch)
    out.loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []
    assert ("mwer" in out.parts) == ("mwer_weight" in settings)


def test_without_glancing_nothing_waits_for_a_gradient() -> None:
    model, batch = build(glancing_ratio=0.0).train(), make_batch([5, 3, 4])
    out = model.loss(FEATS, LENS, batch)
    out.loss.backward()
    assert "hits" not in out.parts
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert model.state_dict().keys() == build().state_dict().keys()


def test_a_silent_batch_has_a_loss_and_all_gradients() -> None:
    model, batch = build(mwer_weight=0.5).train(), make_batch([0, 0])
    feats, lens = torch.randn(2, 9, 12), torch.tensor([9, 0])
    out = model.loss(feats, lens, batch)
    out.loss.backward()
    assert out.loss.isfinite()
    assert out.num_targets == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())  # every rank has to have one
    assert model.predict(feats, lens).token_lens_B[1] == 0


def test_bfloat16_autocast_is_finite() -> None:
    model, batch = build().train(), make_batch([5, 3, 4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model.loss(FEATS, LENS, batch)
        prediction = model.predict(FEATS, LENS)
    assert out.loss.dtype == prediction.log_probs_BUV.dtype == prediction.alphas_BT.dtype == torch.float32
    torch.testing.assert_close(out.loss, model.loss(FEATS, LENS, batch).loss, atol=0.3, rtol=0.1)
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    half = build().bfloat16().eval().predict(FEATS.bfloat16(), LENS)
    assert half.alphas_BT.dtype == torch.float32
    assert half.log_probs_BUV.isfinite().all()


def test_learns_four_utterances_by_heart() -> None:
    tokenizer = CharTokenizer(symbols="abcde")
    assert tokenizer.vocab_size == VOCAB
    model = build(encoder={"dim": 32, "ff_dim": 64}, decoder_layers=1, decoder_ff_dim=64, label_smoothing=0.0)
    batch = make_batch([6, 4, 8, 3], lowest=4)
    generator = torch.Generator().manual_seed(2)
    sounds = torch.randn(VOCAB, 12, generator=generator)
    lens = batch.token_lens_B * 12
    feats = sounds[batch.tokens_BU].repeat_interleave(12, dim=1)
    feats[:, torch.arange(feats.shape[1]) % 12 >= 8] = 0.0
    feats = feats + 0.1 * torch.randn(feats.shape, generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(28):
        optimizer.zero_grad()
        out = model.loss(feats, lens, batch)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    hyps = infer(model.eval(), feats, lens, tokenizer=tokenizer)
    expected = [tuple(row[:n].tolist()) for row, n in zip(batch.tokens_BU, batch.token_lens_B.tolist())]
    assert [hyp.tokens for hyp in hyps] == expected
    assert model.loss(feats, lens, batch).parts["length_accuracy"] == 1.0


def test_predictor_equals_funasr() -> None:
    theirs = pytest.importorskip("funasr.models.paraformer.cif_predictor", reason="funasr is not installed")
    model = build(ctc_weight=0.0).eval()
    x, lens = model.encoder(FEATS, LENS)
    valid = torch.arange(x.shape[1]) < lens[:, None]
    predictor = theirs.CifPredictor(idim=DIM, l_order=1, r_order=1, tail_threshold=0.45).eval()
    predictor.cif_conv1d.load_state_dict(model.predictor.depthwise.state_dict())
    predictor.cif_output.load_state_dict(model.predictor.out.state_dict())
    with torch.no_grad():
        _, counts, alphas, _ = predictor(x, mask=valid[:, None].float())
        ours = model.predict(FEATS, LENS)
    tail = 0.45 * F.one_hot(lens, x.shape[1] + 1)
    torch.testing.assert_close(ours.alphas_BT, (alphas - tail)[:, :-1], atol=1e-5, rtol=0)
    assert ours.token_lens_B.tolist() == counts.tolist()


def funasr_names(layers: int) -> dict[str, str]:
    """Names of the decoder's parts, ours to FunASR's; the joint projections are split by the caller."""
    names = {"norm": "after_norm", "head": "output_layer"}
    for i in range(layers):
        parts = {"self_norm": "norm1", "cross_norm": "norm2", "feed_forward.norm": "norm3"}
        parts |= {"feed_forward.up": "feed_forward.w_1", "feed_forward.down": "feed_forward.w_2"}
        parts |= {"self_attention.out": "self_attn.linear_out", "cross_attention.out": "src_attn.linear_out"}
        parts |= {"cross_attention.query": "src_attn.linear_q"}
        names |= {f"layers.{i}.{ours}": f"decoders.{i}.{theirs}" for ours, theirs in parts.items()}
    return names


@torch.no_grad()
def test_decoder_equals_funasr() -> None:
    module = pytest.importorskip("funasr.models.paraformer.decoder", reason="funasr is not installed")
    ours = build().eval().decoder
    sizes = {"attention_heads": 2, "linear_units": 32, "num_blocks": 2}
    theirs = module.ParaformerSANDecoder(vocab_size=VOCAB, encoder_output_size=DIM, **sizes)
    weights, names = {}, funasr_names(2)
    for name, weight in ours.state_dict().items():
        part, _, kind = name.rpartition(".")
        layer, _, attention = part.removeprefix("layers.").partition(".")
        if attention == "self_attention.qkv":
            split = zip(("self_attn.linear_q", "self_attn.linear_k", "self_attn.linear_v"), weight.chunk(3))
        elif attention == "cross_attention.key_value":
            split = zip(("src_attn.linear_k", "src_attn.linear_v"), weight.chunk(2))
        else:
            weights[f"{names[part]}.{kind}"] = weight
            continue
        weights |= {f"decoders.{layer}.{target}.{kind}": piece for target, piece in split}
    missing, unexpected = theirs.eval().load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.startswith("embed.") for name in missing)
    embeddings, frames = torch.randn(3, 7, DIM), torch.randn(3, 20, DIM)
    token_lens, frame_lens = torch.tensor([7, 1, 4]), torch.tensor([20, 3, 11])
    logits = ours(embeddings, token_lens, ours.read(frames, frame_lens))
    positioned = embeddings + sinusoids(torch.arange(7), DIM)  # FunASR's has no positions of tokens
    expected, _ = theirs(frames, frame_lens, positioned, token_lens)
    valid = torch.arange(7) < token_lens[:, None]
    torch.testing.assert_close(logits[valid], expected[valid], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_tokens_off_the_ctc_path_are_means_of_its_runs() -> None:
    model = build(token_source="ctc").eval()
    assert model.head is not None
    assert model.posteriors is not None
    x, lens = model.encoder(FEATS, LENS)
    logits = model.head(x)
    logits[:, ::3] += 5 * F.one_hot(torch.arange(logits[:, ::3].shape[1]) % VOCAB, VOCAB)  # runs and blanks
    model.head.register_forward_hook(lambda *_: logits)
    seen: list[Tensor] = []
    model.decoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    prediction = model.predict(FEATS, LENS)
    for row in range(3):
        labels, means = logits[row, : lens[row]].argmax(1).tolist(), []
        start = 0
        for label, run in itertools.groupby(labels):
            end = start + len(list(run))
            if label:
                means.append(model.posteriors(logits[row, start:end]).mean(0))
            start = end
        assert prediction.token_lens_B[row] == len(means)
        torch.testing.assert_close(seen[0][row, : len(means)], torch.stack(means), atol=1e-5, rtol=1e-5)


def test_tokens_off_the_ctc_path_of_the_targets_in_training() -> None:
    model, batch = build(token_source="ctc"), make_batch([5, 21, 4])  # 21 tokens do not fit into 14 frames
    seen: list[tuple[Tensor, Tensor]] = []
    model.decoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[:2]))
    out = model.loss(FEATS, LENS, batch)
    assert "quantity" not in out.parts
    assert out.parts["infeasible"] == 1
    assert out.num_targets == 9
    assert [lens.tolist() for _, lens in seen] == [[5, 0, 4]] * 2
    assert seen[0][0][0, :5].abs().sum(1).min() > 0
    out.loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_the_decoder_does_not_teach_ctc() -> None:
    model, batch = build(token_source="ctc", glancing_ratio=0.0).eval(), make_batch([5, 3, 4])
    assert model.head is not None
    assert model.posteriors is not None
    model.encoder.requires_grad_(False)
    seen: list[Tensor] = []
    model.decoder.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model.loss(FEATS, LENS, batch)
    seen[0].sum().backward()
    assert model.head.weight.grad is None
    assert model.posteriors.linear.weight.grad is not None
    assert model.posteriors.linear.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_boundary_loss_is_added_and_none_of_it_in_rows_that_cannot_be_aligned() -> None:
    batch = make_batch([5, 21, 4])
    plain, taught = build().eval(), build(boundary_weight=0.5).eval()
    out, more = plain.loss(FEATS, LENS, batch), taught.loss(FEATS, LENS, batch)
    x, lens = taught.encoder(FEATS, LENS)
    assert taught.head is not None
    alphas = taught.predictor(x, torch.arange(x.shape[1]) < lens[:, None])
    path = ctc_viterbi(taught.head(x).log_softmax(-1), lens, batch.tokens_BU, batch.token_lens_B)
    total = 0.0
    for row in (0, 2):
        edges = [0, *(path.spikes_BU[row, : batch.token_lens_B[row]] + 1).tolist()]
        total += sum(abs(float(alphas[row, a:b].sum()) - 1.0) for a, b in itertools.pairwise(edges))
        total += float(alphas[row, edges[-1] :].sum())
    assert float(more.parts["boundary"]) == pytest.approx(total / 9, rel=1e-4)
    assert set(more.parts) == {*out.parts, "boundary"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"token_source": "hmm"}, "token_source='hmm' must be 'cif' or 'ctc'"),
        ({"token_source": "ctc", "ctc_weight": 0.0}, "token_source='ctc' need ctc_weight above 0"),
        ({"token_source": "ctc", "boundary_weight": 1.0}, "boundary_weight=1.0 teaches the weights of token_source='cif'"),
        ({"ctc_weight": 1.5}, r"ctc_weight=1.5 must be in \[0, 1\]"),
        ({"glancing_ratio": -0.1}, "glancing_ratio=-0.1 must be in"),
        ({"quantity_weight": -1.0}, "quantity_weight=-1.0 must not be negative"),
        ({"mwer_candidates": 1}, "mwer_candidates=1 must be at least 2"),
        ({"ctc_weight": 0.0, "inter_layers": [1]}, r"inter_layers=\[1\], .* need ctc_weight above 0"),
        ({"inter_layers": [2]}, r"inter_layers=\[2\] has \[2\]; choose layers from 1 to 1"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"predictor_kernel": 2}, "predictor_kernel=2 must be odd"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**settings)

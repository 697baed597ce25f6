"""Encoders with CTC predictions between their layers, for every family that has a CTC head.

Sources: Lee and Watanabe 2021, "Intermediate loss regularization for CTC-based speech recognition"; Nozaki and Komatsu
2021, "Relaxing the conditional independence assumption of CTC-based ASR by conditioning on intermediate predictions".

Shape legend: B batch, T frames, P prefix frames, D model, V vocab, F mel bins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn


class CtcEncoding(NamedTuple):
    """What an encoder made of its input.

    Attributes:
        x_BTD: frames after the last layer, those of a prefix first, shape (B, T, D).
        inter_logits: what the head makes of each intermediate layer, scores of shape (B, T, V) as a rule.
        lens_B: valid frames of each row, int64, shape (B,).
    """

    x_BTD: Tensor
    inter_logits: tuple[Any, ...]
    lens_B: Tensor


def encode_with_ctc(
    encoder: nn.Module,
    feats_BTF: Tensor,
    feat_lens_B: Tensor,
    *,
    head: Callable[[Tensor], Any],
    inter_layers: Sequence[int] = (),
    condition: nn.Module | None = None,
    intermediate: bool = False,
    prefix_BPD: Tensor | None = None,
    extend_layer: Callable[[int, Tensor], Tensor] | None = None,
) -> CtcEncoding:
    """Encodes, taking the predictions of the head after some layers and, if asked to, feeding them back.

    Args:
        encoder: maps (feats_BTF, feat_lens_B, tap=) to (x_BTD, x_lens_B), and takes `prefix_BPD=` where there is one. See
            `speechkit.nn.conformer.ConformerEncoder`.
        feats_BTF: features, shape (B, T, F).
        feat_lens_B: valid frames of each row, int64, shape (B,).
        head: maps (B, T, D) to scores (B, T, V), or, without `condition`, to whatever stands in for them.
        inter_layers: layers, counted from 1, after which the head predicts.
        condition: maps (B, T, V) to (B, T, D): what the next layer sees besides; None for plain encoding.
        intermediate: whether the scores of the intermediate layers are wanted; without them and without `condition`
            the head is not called at all.
        prefix_BPD: frames that stand before those of the audio, shape (B, P, D); None for none.
        extend_layer: maps a layer's number and its output to what takes the place of that output, before the head sees it.
    """
    inter_logits: list[Any] = []
    predicts = bool(inter_layers) and (intermediate or condition is not None)

    def tap(layer: int, x_BTD: Tensor, lens_B: Tensor) -> Tensor:
        if extend_layer is not None:
            x_BTD = extend_layer(layer, x_BTD)
        if not predicts or layer not in inter_layers:
            return x_BTD
        logits_BTV = head(x_BTD)
        inter_logits.append(logits_BTV)
        return x_BTD if condition is None else x_BTD + condition(logits_BTV.softmax(dim=-1).to(x_BTD.dtype))

    tapped = predicts or extend_layer is not None
    prefix = {} if prefix_BPD is None else {"prefix_BPD": prefix_BPD}
    x_BTD, lens_B = encoder(feats_BTF, feat_lens_B, tap=tap if tapped else None, **prefix)
    return CtcEncoding(x_BTD, tuple(inter_logits), lens_B)


def check_inter_layers(encoder: nn.Module, inter_layers: Sequence[int], weight: float, self_condition: bool) -> None:
    """Rejects settings of intermediate losses that cannot be meant.

    Raises:
        ValueError: an intermediate layer does not exist or is the last one, the weight is out of range, or there is
            nothing to condition on.
    """
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"inter_weight={weight} must be in [0, 1]")
    if self_condition and not inter_layers:
        raise ValueError("self_condition=true needs inter_layers, the layers whose predictions are fed back")
    if inter_layers:
        last = len(encoder.layers) - 1  # type: ignore[arg-type]
        wrong = [layer for layer in inter_layers if not 1 <= layer <= last]
        if wrong:
            raise ValueError(f"inter_layers={list(inter_layers)} has {wrong}; choose layers from 1 to {last}")

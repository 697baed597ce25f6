"""OWSM-CTC model: language and task as frames before the audio, and CTC with targets that rise with the layers.

Source: Peng et al. 2024, "OWSM-CTC: An Open Encoder-Only Speech Foundation Model for Speech Recognition, Translation, and
Language Identification", section 3.

Shape legend: B batch, T frames of the audio, P prefix frames (2), U tokens, D model, V vocab, F mel bins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.losses.ctc import CtcTargets, ctc_branch_loss, scores_for_loss
from speechkit.nn.ctc_encoder import CtcEncoding, check_inter_layers, encode_with_ctc
from speechkit.nn.dropout import Dropout
from speechkit.nn.text_encoder import TextAttention, TextEncoder
from speechkit.text.tags import tag_places
from speechkit.text.tokenizers import BLANK, EOS, SOS
from speechkit.types import AsrBatch, LossOutput

NO_LANGUAGE = 0  # row of the language embeddings that stands for "not told"


class PromptReader(nn.Module):
    """Encodes the text that came before, and lets every so-manieth encoder layer attend to it.

    Args:
        vocab_size: V.
        dim: D of the frames.
        text_dim: width of the encoded text.
        num_layers: layers over the text.
        num_heads: attention heads over the text and of frames to it.
        ff_dim: hidden width of the feed-forward layers over the text.
        dropout: rate in training.
        encoder_layers: layers of the encoder of frames.
        every: n, for layers n, 2n, 3n, ... to attend to the text.

    Raises:
        ValueError: `every` leaves no layer.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int,
        text_dim: int,
        num_layers: int,
        num_heads: int,
        ff_dim: int,
        dropout: float,
        encoder_layers: int,
        every: int,
    ) -> None:
        super().__init__()
        if not 1 <= every <= encoder_layers:
            raise ValueError(f"prompt_every={every} must be between 1 and the {encoder_layers} layers of the encoder")
        self.every = every
        self.encoder = TextEncoder(
            vocab_size=vocab_size, dim=text_dim, num_layers=num_layers, num_heads=num_heads, ff_dim=ff_dim, dropout=dropout
        )
        self.attentions = nn.ModuleList(
            TextAttention(dim=dim, num_heads=num_heads, text_dim=text_dim, dropout=dropout)
            for _ in range(encoder_layers // every)
        )

    def forward(self, prompt_BU: Tensor, prompt_lens_B: Tensor) -> Callable[[int, Tensor], Tensor]:
        """What follows each layer, for `encode_with_ctc`, given prompts (B, U) and their lengths (B,), 0 for none."""
        text = self.encoder(F.pad(prompt_BU, (1, 0), value=SOS), prompt_lens_B + 1)

        def extend_layer(layer: int, x_BTD: Tensor) -> Tensor:
            return x_BTD if layer % self.every else self.attentions[layer // self.every - 1](x_BTD, text)

        return extend_layer


class OwsmCtcModel(nn.Module):
    """Encoder behind two prefix frames, one CTC head for several layers, and an optional prompt.

    Args:
        encoder: maps (feats_BTF, feat_lens_B, tap=, prefix_BPD=) to (x_BTD, x_lens_B); has `layers`, `output_dim` and
            `subsampling_factor`. See `speechkit.nn.conformer.ConformerEncoder`.
        vocab_size: V, with the blank as id 0.
        language_tokens: ids of language tags by language code; at least one.
        task_tokens: ids of task tags by name; the first is what is done when no task is named.
        asr_layers: encoder layers, counted from 1, trained on the transcript.
        task_layers: encoder layers above these, trained on what the task asks for, as the last layer is.
        inter_weight: share w of these layers in the loss: (1 - w) last + w mean(others).
        self_condition: add a linear image of the predictions of these layers to what the next layer sees.
        no_language_prob: chance in training that an utterance's language is not told.
        prompt_layers: layers of the prompt's encoder; 0 for a model without prompts.
        prompt_dim: width of the prompt's encoder; None for that of the encoder.
        prompt_heads: attention heads of the prompt's encoder and of the cross-attention to it.
        prompt_ff_dim: hidden width of the feed-forward layers of the prompt's encoder.
        prompt_every: cross-attention to the prompt follows every so-manieth encoder layer.
        no_prompt_prob: chance in training that an utterance's prompt is withheld.
        dropout: rate in training before the head and in all that concerns the prompt.

    Attributes:
        num_views: augmented copies of the features that `loss` expects, 1.
        num_prefix_frames: output frames before those of the audio, 2: language and task.
        subsampling_factor: input frames per output frame of the audio.

    Raises:
        ValueError: a share is out of range, a layer does not exist or stands on the wrong side, or a tag is missing, not
            in the vocabulary or used twice.
    """

    num_views = 1
    num_prefix_frames = 2
    language_ids_L: Tensor
    task_ids_K: Tensor

    def __init__(
        self,
        *,
        encoder: nn.Module,
        vocab_size: int,
        language_tokens: Mapping[str, int],
        task_tokens: Mapping[str, int],
        asr_layers: Sequence[int],
        task_layers: Sequence[int],
        inter_weight: float = 0.8,
        self_condition: bool = True,
        no_language_prob: float = 0.5,
        prompt_layers: int = 0,
        prompt_dim: int | None = None,
        prompt_heads: int = 4,
        prompt_ff_dim: int = 1024,
        prompt_every: int = 3,
        no_prompt_prob: float = 0.5,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        _check_settings(no_language_prob, no_prompt_prob, asr_layers, task_layers)
        _check_tags(language_tokens, task_tokens, vocab_size)
        self.inter_layers = tuple(sorted({*asr_layers, *task_layers}))
        check_inter_layers(encoder, self.inter_layers, inter_weight, self_condition)
        self.asr_layers, self.inter_weight = frozenset(asr_layers), inter_weight
        self.no_language_prob, self.no_prompt_prob = no_language_prob, no_prompt_prob
        self.languages, self.tasks = tuple(language_tokens), tuple(task_tokens)
        self.register_buffer("language_ids_L", torch.tensor(list(language_tokens.values())), persistent=False)
        self.register_buffer("task_ids_K", torch.tensor(list(task_tokens.values())), persistent=False)
        dim: int = encoder.output_dim  # type: ignore[assignment]
        self.subsampling_factor: int = encoder.subsampling_factor  # type: ignore[assignment]
        self.encoder = encoder
        self.vocab_size = vocab_size
        self.language_embedding = nn.Embedding(1 + len(self.languages), dim)
        self.task_embedding = nn.Embedding(len(self.tasks), dim)
        self.dropout = Dropout(dropout)
        self.head = nn.Linear(dim, vocab_size)
        self.condition = nn.Linear(vocab_size, dim) if self_condition else None
        self.prompt: PromptReader | None = None
        if prompt_layers:
            self.prompt = PromptReader(
                vocab_size=vocab_size,
                dim=dim,
                text_dim=dim if prompt_dim is None else prompt_dim,
                num_layers=prompt_layers,
                num_heads=prompt_heads,
                ff_dim=prompt_ff_dim,
                dropout=dropout,
                encoder_layers=len(encoder.layers),  # type: ignore[arg-type]
                every=prompt_every,
            )

    def loss(self, feats_BTF: Tensor, feat_lens_B: Tensor, batch: AsrBatch) -> LossOutput:
        """Training loss: (1 - w) CTC of the last layer + w mean of CTC of `asr_layers` and `task_layers`.

        Each is the sum over the batch of -log p(<lang> <task> tokens), divided by the number of these target tokens.
        Utterances too short for their tokens add nothing; `parts["infeasible"]` counts them. In training the language is
        withheld by chance, in evaluation always.

        Args:
            feats_BTF: features, shape (B, T, F).
            feat_lens_B: valid frames of each row, int64, shape (B,).
            batch: B utterances. The transcript is the target of all layers, unless the batch brings `task_tokens_BU`: these
                are then the target of `task_layers` and of the last one, and rows without a transcript add nothing below.

        Returns:
            loss; parts ctc, inter_ctc, each per target token, infeasible, a count of utterances, and language_accuracy
            where there is more than one language; number of target tokens of the last layer.

        Raises:
            ValueError: an utterance is in a language, or a task is named, that has no token.
        """
        num_rows = len(batch.tokens_BU)
        language_B = self._places("language", self.languages, batch.langs)
        task_B = self._places("task", self.tasks, [name or self.tasks[0] for name in batch.tasks or ("",) * num_rows])
        told_B = torch.zeros_like(language_B, dtype=torch.bool)
        if self.training:
            told_B = torch.rand(num_rows, device=told_B.device) >= self.no_language_prob
        encoding = self._encode(
            feats_BTF,
            feat_lens_B,
            torch.where(told_B, language_B + 1, NO_LANGUAGE),
            task_B,
            *self._training_prompt(batch),
            intermediate=True,
        )
        tags_B2 = torch.stack((self.language_ids_L[language_B], self.task_ids_K[task_B]), dim=1)
        transcript = _tagged(tags_B2, batch.tokens_BU, batch.token_lens_B)
        wanted = transcript
        if batch.task_tokens_BU is not None:
            assert batch.task_token_lens_B is not None
            wanted = _tagged(tags_B2, batch.task_tokens_BU, batch.task_token_lens_B)
            transcript = transcript._replace(known_B=batch.token_lens_B > 0)
        x_BTD = self.dropout(encoding.x_BTD)
        ctc = ctc_branch_loss(
            scores_for_loss(self.head, x_BTD),
            encoding.inter_logits,
            encoding.lens_B,
            wanted.tokens_BU,
            wanted.token_lens_B,
            inter_weight=self.inter_weight,
            inter_targets=[transcript if layer in self.asr_layers else wanted for layer in self.inter_layers],
            blank=BLANK,
        )
        parts = ctc.parts
        if len(self.languages) > 1:
            prefix_BPV = self.head(x_BTD[:, : self.num_prefix_frames].detach())
            said_B = _prefix_posterior(prefix_BPV.detach(), self.language_ids_L).argmax(dim=-1)
            parts["language_accuracy"] = (said_B == language_B).float().mean()
        return LossOutput(loss=ctc.loss, parts=parts, num_targets=ctc.num_targets)

    def frame_log_probs(
        self,
        feats_BTF: Tensor,
        feat_lens_B: Tensor,
        *,
        language: str | None = None,
        task: str | None = None,
        prompt: Sequence[int] = (),
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of languages, of tasks, and of labels at each frame of the audio.

        Args:
            feats_BTF: features, shape (B, T, F).
            feat_lens_B: valid frames of each row, int64, shape (B,).
            language: code of the language spoken in all rows; None when unknown.
            task: what to do; None for the first of `task_tokens`.
            prompt: token ids of text that came before; for models with prompts.

        Returns:
            fp32, shape (B, 2 + ceil(T / subsampling_factor), V), and lengths (B,) with the prefix counted. Frame 0 is a
            distribution over language tags, frame 1 one over task tags, both read off the prefix frames. In the frames of
            the audio tags count as blank.

        Raises:
            ValueError: language or task are not known, or the model takes no prompt.
        """
        if prompt and self.prompt is None:
            raise ValueError("prompt: this model was trained without prompts (prompt_layers=0); leave it out")
        rows, device = len(feats_BTF), feats_BTF.device
        language_B = torch.full((rows,), NO_LANGUAGE, device=device)
        if language is not None:
            language_B = self._places("language", self.languages, (language,) * rows) + 1
        task_B = self._places("task", self.tasks, (task or self.tasks[0],) * rows)
        prompt_BU = torch.tensor(prompt, dtype=torch.long, device=device).expand(rows, -1)
        prompt_lens_B = torch.full((rows,), len(prompt), device=device)
        x_BTD, _, lens_B = self._encode(feats_BTF, feat_lens_B, language_B, task_B, prompt_BU, prompt_lens_B, intermediate=False)
        logits_BTV = self.head(self.dropout(x_BTD)).float()
        audio_BTV = _tags_as_blank(
            F.log_softmax(logits_BTV[:, self.num_prefix_frames :], dim=-1), torch.cat((self.language_ids_L, self.task_ids_K))
        )
        prefix_B2V = torch.full_like(logits_BTV[:, : self.num_prefix_frames], float("-inf"))
        for place, ids in enumerate((self.language_ids_L, self.task_ids_K)):
            prefix_B2V[:, place, ids] = _prefix_posterior(logits_BTV, ids)
        return torch.cat((prefix_B2V, audio_BTV), dim=1), lens_B

    def output_lengths(self, lens_B: Tensor) -> Tensor:
        """Output frames of the audio for so many input frames."""
        return self.encoder.output_lengths(lens_B)  # type: ignore[operator]

    def _encode(
        self,
        feats_BTF: Tensor,
        feat_lens_B: Tensor,
        language_B: Tensor,
        task_B: Tensor,
        prompt_BU: Tensor,
        prompt_lens_B: Tensor,
        *,
        intermediate: bool,
    ) -> CtcEncoding:
        """Output of the encoder and, if asked for, scores of the head in between, of rows of the two embeddings."""
        return encode_with_ctc(
            self.encoder,
            feats_BTF,
            feat_lens_B,
            head=self.head,
            inter_layers=self.inter_layers,
            condition=self.condition,
            intermediate=intermediate,
            prefix_BPD=torch.stack((self.language_embedding(language_B), self.task_embedding(task_B)), dim=1),
            extend_layer=None if self.prompt is None else self.prompt(prompt_BU, prompt_lens_B),
        )

    def _training_prompt(self, batch: AsrBatch) -> tuple[Tensor, Tensor]:
        """Prompts of a batch and their lengths; in training some are withheld."""
        if batch.prompt_tokens_BU is None:
            return batch.tokens_BU[:, :0], torch.zeros_like(batch.token_lens_B)
        assert batch.prompt_token_lens_B is not None
        lens_B = batch.prompt_token_lens_B
        if self.training:
            lens_B = lens_B * (torch.rand(len(lens_B), device=lens_B.device) >= self.no_prompt_prob)
        return batch.prompt_tokens_BU, lens_B

    def _places(self, what: str, known: tuple[str, ...], names: Sequence[str]) -> Tensor:
        """Where names stand among the known ones, int64, shape (B,)."""
        return torch.tensor(tag_places(what, names, known), dtype=torch.long, device=self.head.weight.device)


def _tagged(tags_B2: Tensor, tokens_BU: Tensor, token_lens_B: Tensor) -> CtcTargets:
    """Targets with the tags of language and task before them."""
    return CtcTargets(torch.cat((tags_B2, tokens_BU), dim=1), token_lens_B + tags_B2.shape[1])


def _prefix_posterior(logits_BTV: Tensor, ids_L: Tensor) -> Tensor:
    """Which of these tags the prefix frames say, where each is the likelier; log-probabilities, fp32, shape (B, L)."""
    prefix_B2V = F.log_softmax(logits_BTV[:, : OwsmCtcModel.num_prefix_frames].float(), dim=-1)
    return F.log_softmax(prefix_B2V[..., ids_L].amax(dim=1), dim=-1)


def _tags_as_blank(log_probs_BTV: Tensor, ids_L: Tensor) -> Tensor:
    """Log-probabilities in which blank has taken over those of the tags."""
    blank_and_tags_L = F.pad(ids_L, (1, 0), value=BLANK)
    blank_BT = log_probs_BTV[..., blank_and_tags_L].logsumexp(dim=-1)
    log_probs_BTV = log_probs_BTV.index_fill(-1, ids_L, float("-inf"))
    return torch.cat((blank_BT[..., None], log_probs_BTV[..., BLANK + 1 :]), dim=-1)


def _check_settings(
    no_language_prob: float, no_prompt_prob: float, asr_layers: Sequence[int], task_layers: Sequence[int]
) -> None:
    """Raises ValueError for shares out of range and for layers on the wrong side of one another."""
    for name, share in (("no_language_prob", no_language_prob), ("no_prompt_prob", no_prompt_prob)):
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"{name}={share} must be in [0, 1]")
    if asr_layers and task_layers and max(asr_layers) >= min(task_layers):
        raise ValueError(
            f"asr_layers={list(asr_layers)} must all lie below task_layers={list(task_layers)}: transcripts first, then the task"
        )


def _check_tags(language_tokens: Mapping[str, int], task_tokens: Mapping[str, int], vocab_size: int) -> None:
    """Raises ValueError for tags that are missing, not in the vocabulary, or used twice."""
    for name, tags in (("language_tokens", language_tokens), ("task_tokens", task_tokens)):
        if not tags:
            raise ValueError(f"{name} is empty; give ids of tags by name, such as en: 4 for a tokenizer with tags: [en, ...]")
        wrong = [token for token in tags.values() if not EOS < token < vocab_size]
        if wrong:
            raise ValueError(f"{name} holds {wrong[0]}; give ids above {EOS} and below {vocab_size}")
    ids = [*language_tokens.values(), *task_tokens.values()]
    if len(set(ids)) != len(ids):
        raise ValueError(f"language_tokens and task_tokens use an id twice: {ids}; give every tag an id of its own")

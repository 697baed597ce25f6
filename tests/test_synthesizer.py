"""Synthesizer: texts of any length and kind, voices, batches, streams, prompts, loading from a folder, the command."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner

import speechkit
from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.cli import main
from speechkit.models.fastspeech.infer import FastSpeechOptions, infer
from speechkit.models.fastspeech.model import FastSpeechModel
from speechkit.models.vocoder.griffin_lim import GriffinLim
from speechkit.pretrained import load_synthesizer, save_pretrained
from speechkit.synthesizer import Synthesizer
from speechkit.text.frontend import FrontEnd
from speechkit.text.tokenizers import PhonemeTokenizer

MEL = MelSpectrogram.preset(16000)
LETTERS = PhonemeTokenizer(symbols=[*"abcdefghijklmnopqrstuvwxyz.,?!;:'"])
SIZES: dict[str, Any] = {
    "vocab_size": LETTERS.vocab_size, "num_mels": 80, "num_speakers": 2, "dim": 16, "encoder_layers": 1, "decoder_layers": 1,
    "filter_dim": 16, "kernel_sizes": [3, 1], "predictor_dim": 16, "postnet_layers": 0,
}  # fmt: skip
FRONTEND = {"lang": "en", "backend": "characters"}


def _model() -> FastSpeechModel:
    torch.manual_seed(0)
    model = FastSpeechModel(**SIZES).eval()
    with torch.no_grad():
        model.duration.out.bias.fill_(1.5)
    model.mel_norm.mean.fill_(-5.0)
    return model


@pytest.fixture(scope="module")
def voice() -> Synthesizer:
    """Two voices that mumble."""
    return Synthesizer(
        mel=MEL,
        model=_model(),
        frontend=FrontEnd(**FRONTEND),
        tokenizer=LETTERS,
        infer=infer,
        options=FastSpeechOptions(),
        vocoder=GriffinLim(mel=MEL, num_iterations=2),
        speakers=("anna", "ben"),
        languages=("en",),
        log_f0_mean={"anna": 5.0},
        log_f0_std=0.2,
        name="mumble",
        max_chars=40,
    )


def test_waveform_alignment_and_pitch_belong_together(voice: Synthesizer) -> None:
    made = voice.synthesize("good morning, world")
    assert (made.sample_rate, made.text) == (16000, "good morning, world")
    assert made.wave.dtype == np.float32
    assert made.mel is not None
    assert made.pitch is not None
    assert len(made.wave) == 160 * len(made.mel)
    assert made.alignment[-1].end == pytest.approx(len(made.wave) / 16000)
    assert [p.symbol for p in made.alignment] == FrontEnd(**FRONTEND).phones("good morning, world")
    assert all(one.end == other.start for one, other in zip(made.alignment, made.alignment[1:], strict=False))
    assert len(made.pitch) == len(made.alignment)
    assert voice.synthesize("good morning, world", speaker="ben").pitch is None


def test_a_text_sounds_the_same_in_any_batch(voice: Synthesizer) -> None:
    texts = ["one two three.", "a much longer sentence than the others, with a clause.", "hm", "seven eight"]
    alone = [voice.synthesize(text, seed=3) for text in texts]
    for batch_size in (1, 2, 8):
        for order in (texts, texts[::-1]):
            together = {made.text: made for made in voice.synthesize(order, seed=3, batch_size=batch_size)}
            for one in alone:
                np.testing.assert_allclose(together[one.text].mel, one.mel, atol=2e-5)
                np.testing.assert_allclose(together[one.text].wave, one.wave, atol=2e-3)


def test_long_texts_go_in_pieces(voice: Synthesizer) -> None:
    text = "this is a sentence of some words. " * 60
    assert len(text) > 2000
    made = voice.synthesize(text)
    assert made.alignment[-1].end == pytest.approx(len(made.wave) / 16000)
    spoken = "".join(phone.symbol for phone in made.alignment if phone.symbol.isalpha())
    assert spoken == text.replace(" ", "").replace(".", "")


def test_a_stream_begins_with_a_short_piece(voice: Synthesizer) -> None:
    text = "first comes this. then comes a second sentence of many more words, as long as it may be. and the end."
    pieces = list(voice.stream(text))
    assert len(pieces) > 1
    assert len(pieces[0].text) <= 40
    assert " ".join(piece.text for piece in pieces) == text
    ends = [piece.alignment[-1].end for piece in pieces]
    assert ends == sorted(ends)
    assert ends[-1] == pytest.approx(sum(len(piece.wave) for piece in pieces) / 16000)
    assert [piece.text for piece in voice.stream("hm")] == ["hm"]


@pytest.mark.parametrize(
    ("text", "options", "message"), [(["a"], {}, "is no string"), ("a", {"first_chars": 0}, "first_chars=0")]
)
def test_a_stream_refuses_at_once(voice: Synthesizer, text: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        voice.stream(text, **options)


def test_a_stream_says_what_synthesize_says() -> None:
    """The rest was joined with blanks: paragraphs ran together, and scripts without blanks got some."""
    frontend = FrontEnd(**FRONTEND)
    symbols = {*"abcdefghijklmnopqrstuvwxyz.,?!;:'\u5317\u98ce\u592a\u9633"}
    known = PhonemeTokenizer(symbols=sorted(symbols))
    model = FastSpeechModel(**{**SIZES, "vocab_size": known.vocab_size}).eval()
    reader = Synthesizer(mel=MEL, model=model, frontend=frontend, tokenizer=known, infer=infer, max_chars=90,
                         options=FastSpeechOptions(), vocoder=GriffinLim(mel=MEL, num_iterations=0))  # fmt: skip
    for text in (
        "a heading\n\nthen the text, which is long enough\nto be cut. the end\n\nanother heading\n\nthe very end",
        "\u5317\u98ce\u592a\u9633" * 50,
        "one sentence of many words and two commas, as it happens, that fits into one piece but is no short one.",
    ):
        whole = [phone.symbol for phone in reader.synthesize(text).alignment]
        for batch_size in (1, 4):
            pieces = list(reader.stream(text, batch_size=batch_size))
            said = [phone.symbol for piece in pieces for phone in piece.alignment]
            assert "".join(filter(str.isalpha, said)) == "".join(filter(str.isalpha, whole))
            assert "".join("".join(piece.text for piece in pieces).split()) == "".join(text.split())
            assert len(pieces[0].text) <= 60
    pieces = [piece.text for piece in reader.stream("a heading\n\nthe text\n\nthe end")]
    assert pieces == ["a heading", "the text", "the end"]
    assert [len(piece.text) for piece in reader.stream("\u5317\u98ce" * 70)] == [60, 30, 50]


def test_pieces_are_said_with_pauses_between(voice: Synthesizer) -> None:
    text = "One two three. Four five six.\n\nseven eight nine; but ten and eleven are in a clause of many words. ..."
    apart = [voice.synthesize(part.text, pauses=0.0) for part in voice.stream(text)]
    joined = voice.synthesize(text, pauses=0.0)
    spoken = sum(len(part.wave) for part in apart)
    assert len(joined.wave) == spoken
    made = voice.synthesize(text)
    assert made.mel is not None
    assert made.pitch is not None
    frames = [25, 50, 12]  # and none where a clause is cut, nor before what has nothing to say
    assert len(made.wave) == spoken + 160 * sum(frames) == 160 * len(made.mel)
    starts = np.cumsum([len(part.wave) for part in apart])[:3] + 160 * np.cumsum([0, *frames[:-1]])
    for start, num_frames in zip(starts.tolist(), frames, strict=True):
        assert not made.wave[start : start + 160 * num_frames].any()
        np.testing.assert_allclose(made.mel[start // 160 : start // 160 + num_frames], np.log(MEL.log_floor), rtol=1e-6)
        [boundary] = [phone for phone in made.alignment if phone.start == pytest.approx(start / 16000)]
        assert boundary.symbol == "|"
        assert boundary.end >= start / 16000 + num_frames / 100 - 1e-6
    assert all(one.end == pytest.approx(other.start) for one, other in zip(made.alignment, made.alignment[1:], strict=False))
    assert made.alignment[-1].end == pytest.approx(len(made.wave) / 16000)
    assert [phone.symbol for phone in made.alignment] == [phone.symbol for phone in joined.alignment]
    np.testing.assert_array_equal(made.pitch, joined.pitch)
    pieces = list(voice.stream(text, batch_size=2))
    np.testing.assert_allclose(np.concatenate([piece.mel for piece in pieces]), made.mel, atol=2e-5)
    assert [phone.end for piece in pieces for phone in piece.alignment] == pytest.approx([p.end for p in made.alignment])
    fast = voice.synthesize(text, speed=2.0, pauses=0.5)
    assert len(fast.wave) == len(voice.synthesize(text, speed=2.0, pauses=0.0).wave) + 160 * (6 + 12 + 3)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"pauses={wrong}"):
            voice.synthesize(text, pauses=wrong)


@pytest.mark.parametrize("text", ["", "   ", "\U0001f600", "...", "-"])
def test_nothing_to_say_is_an_empty_waveform_and_a_warning(voice: Synthesizer, text: str) -> None:
    with pytest.warns(UserWarning, match="nothing to say"):
        made = voice.synthesize(text)
    assert (len(made.wave), made.alignment, made.text) == (0, (), text)
    with pytest.warns(UserWarning, match="nothing to say"):
        empty, full = voice.synthesize([text, "yes"])
    assert not len(empty.wave)
    assert len(full.wave)


@pytest.mark.parametrize("text", ["x", "I", "\u4f60\u597d hello", "na\u00efve caf\u00e9 \U0001f600 yes", "a" * 300])
def test_odd_texts(voice: Synthesizer, text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = voice.synthesize(text)
    assert np.isfinite(made.wave).all()
    assert len(made.wave)


def test_phones_that_the_model_never_saw_are_said_by_others_and_named_once() -> None:
    """<unk> was said for them, without a word."""
    known = PhonemeTokenizer(symbols=[".", "h", "\u0259", "l", "\u02c8o\u028a", "\u02c8\u0254", "\u026a", "b"])
    model = FastSpeechModel(**{**SIZES, "vocab_size": known.vocab_size}).eval()
    heard: list[list[int]] = []

    def spy(model: FastSpeechModel, inputs: Any, **options: Any) -> Any:
        heard.append(inputs.phones_BP[0].tolist())
        return infer(model, inputs, **options)

    small = Synthesizer(mel=MEL, model=model, frontend=FrontEnd(**FRONTEND), tokenizer=known, infer=spy, name="small",
                        options=FastSpeechOptions(), vocoder=GriffinLim(mel=MEL, num_iterations=0))  # fmt: skip
    text = "{h \u0259 l o\u028a ! b \u02c8\u0254\u026a | x}!"
    with pytest.warns(UserWarning, match="small was not trained on") as caught:
        made = small.synthesize(text)
    told = str(caught[0].message)
    assert "! (said as .)" in told
    assert "o\u028a (said as \u02c8o\u028a)" in told
    assert "\u02c8\u0254\u026a (said as \u02c8\u0254 \u026a), x (left out)" in told
    said = "| h \u0259 l \u02c8o\u028a . b \u02c8\u0254 \u026a ."
    assert [phone.symbol for phone in made.alignment] == said.split()
    assert heard == [known.encode(said)]
    assert known.unk_id not in heard[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small.synthesize(text)
    with pytest.warns(UserWarning, match="nothing to say"):
        assert not len(small.synthesize("{x}").wave)


def test_wrong_arguments_are_named(voice: Synthesizer) -> None:
    with pytest.raises(ValueError, match="speaker='carl' is not known; choose one of 'anna', 'ben'"):
        voice.synthesize("hm", speaker="carl")
    with pytest.raises(ValueError, match="language='de' is not known; choose one of 'en'"):
        voice.synthesize("hm", language="de")
    with pytest.raises(ValueError, match="3 speakers for 2 texts"):
        voice.synthesize(["a", "b"], speaker=["anna", "ben", "anna"])
    with pytest.raises(ValueError, match="speed=-1"):
        voice.synthesize("hm", speed=-1.0)
    with pytest.raises(ValueError, match="prompt_text=None"):
        voice.synthesize("hm", prompt=np.zeros(1600, np.float32))
    with pytest.raises(ValueError, match="batch_size=0"):
        voice.synthesize(["hm"], batch_size=0)
    with pytest.raises(ValueError, match="is a int; give a string"):
        voice.synthesize([3])  # type: ignore[list-item]


def test_options_of_the_family_are_arguments(voice: Synthesizer) -> None:
    usual, loud = voice.synthesize("hm"), voice.synthesize("hm", energy=np.float32(2.0))
    assert not np.array_equal(usual.mel, loud.mel)
    np.testing.assert_array_equal(next(voice.stream("hm", energy=2.0)).mel, loud.mel)
    with pytest.raises(ValueError, match="num_steps=4: mumble has no option num_steps; its options are energy, pit"):
        voice.synthesize("hm", num_steps=4)
    for name in ("speed", "pitch", "energy"):
        with pytest.raises(ValueError, match=f"{name}=nan"):
            voice.synthesize("hm", **{name: float("nan")})
    for wrong in ("loud", None, True):
        with pytest.raises(ValueError, match=f"energy={wrong!r} must be a number"):
            voice.synthesize("hm", energy=wrong)
    with pytest.raises(ValueError, match=r"seed=1\.5 must be a whole number"):
        voice.stream("hm", seed=1.5)  # type: ignore[arg-type]


def test_the_language_goes_to_the_model_by_its_number() -> None:
    model = FastSpeechModel(**{**SIZES, "num_languages": 3}).eval()
    heard: list[list[int]] = []

    def spy(model: FastSpeechModel, inputs: Any, **options: Any) -> Any:
        heard.append(inputs.languages_B.tolist())
        return infer(model, inputs, **options)

    frontend = FrontEnd(lang="en", backend="characters")
    many = Synthesizer(mel=MEL, model=model, frontend=frontend, tokenizer=LETTERS, infer=spy, options=FastSpeechOptions(),
                       vocoder=GriffinLim(mel=MEL, num_iterations=0), languages=("de", "en", "fr"))  # fmt: skip
    many.synthesize("hm")  # the front end's own
    many.synthesize(["hm", "ja"], language="fr")
    many.synthesize("hm", language="de-AT")  # was number 0, as was any that is not known
    many.synthesize("hm", language="en_GB")
    assert heard == [[1], [2, 2], [0], [1]]
    with pytest.raises(ValueError, match="language='es' is not known; choose one of 'de', 'en', 'fr'"):
        many.synthesize("hm", language="es")
    many.languages = ("de", "en-us", "en")
    many.synthesize("hm", language="en")
    many.synthesize("hm", language="en-gb")
    assert heard[4:] == [[2], [1]]
    many.languages = ("de", "fr")
    with pytest.raises(ValueError, match="language='en', the front end's own, is not known; choose one of 'de', 'fr'"):
        many.synthesize("hm")


def test_prompts_come_to_the_model_as_one_loud_channel() -> None:
    """16-bit samples were taken for 32768 times as loud, and the second channel for more of the first."""
    heard: list[Any] = []

    def spy(model: FastSpeechModel, inputs: Any, **options: Any) -> Any:
        heard.append(inputs)
        return infer(model, inputs._replace(prompt_wave_BN=None), **options)

    imitator = Synthesizer(mel=MEL, model=_model(), frontend=FrontEnd(**FRONTEND), tokenizer=LETTERS, infer=spy,
                           options=FastSpeechOptions(), vocoder=GriffinLim(mel=MEL, num_iterations=0))  # fmt: skip
    time = np.arange(16000) / 16000
    speech = np.round(2000 * np.sign(np.sin(800 * time)) * np.sin(16 * time) ** 2).astype(np.int16)
    imitator.synthesize(["one", "two"], prompt=np.stack([speech, speech]), prompt_text="who is it")
    assert heard[0].prompt_wave_lens_B.tolist() == [heard[0].prompt_wave_BN.shape[1]] * 2
    assert heard[0].prompt_wave_BN.shape[1] <= 16000
    assert float(heard[0].prompt_wave_BN[0].square().mean().sqrt()) == pytest.approx(0.1, rel=1e-3)
    assert heard[0].prompt_phones_BP[0].tolist() == LETTERS.encode("| w h o | i s | i t .")
    with pytest.raises(ValueError, match="no speech"):
        imitator.synthesize("one", prompt=np.zeros(16000, np.float32), prompt_text="who")
    with pytest.raises(ValueError, match=r"prompt_text='\.\.\.' has nothing to say"):
        imitator.synthesize("one", prompt=speech, prompt_text="...")


def test_another_mel_is_refused_by_its_field() -> None:
    other = GriffinLim(mel=MelSpectrogram.preset(22050))
    with pytest.raises(ValueError, match=r"hop_length=160 against 256.*sample_rate=16000 against 22050"):
        Synthesizer(mel=MEL, model=_model(), frontend=FrontEnd(**FRONTEND), tokenizer=LETTERS, infer=infer,
                    options=FastSpeechOptions(), vocoder=other)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mumbling voices as a pretrained folder."""
    settings = {key: value for key, value in MEL.settings().items() if key != "type"}
    config = {
        "kind": "synthesizer",
        "features": {"_target_": "speechkit.audio.spectrogram.MelSpectrogram", **settings},
        "features_fingerprint": MEL.fingerprint(),
        "frontend": {"_target_": "speechkit.text.frontend.FrontEnd", **FRONTEND},
        "model": {"_target_": "speechkit.models.fastspeech.model.FastSpeechModel", **SIZES},
        "decode": {
            "_target_": "speechkit.models.fastspeech.infer.infer",
            "options": {"_target_": "speechkit.models.fastspeech.infer.FastSpeechOptions"},
        },
        "speakers": ["anna", "ben"],
        "languages": ["en"],
    }
    weights = {f"model.{name}": tensor for name, tensor in _model().state_dict().items()}
    directory = tmp_path_factory.mktemp("voice") / "pretrained"
    return save_pretrained(directory, config=config, state_dict=weights, tokenizer=LETTERS, card="mumbling")


def test_loading_from_a_folder(folder: Path, voice: Synthesizer) -> None:
    loaded = speechkit.load(folder, device="cpu")
    assert isinstance(loaded, Synthesizer)
    assert loaded.speakers == voice.speakers
    np.testing.assert_array_equal(loaded.synthesize("hello").mel, voice.synthesize("hello").mel)
    with pytest.raises(ValueError, match=r"vocoder=.* is a folder with a synthesizer"):
        load_synthesizer(folder, vocoder=folder)
    with pytest.raises(ValueError, match="holds a recognizer, which makes no speech"):
        speechkit.load("demo-ctc", vocoder=folder)
    with pytest.raises(ValueError, match="is not a synthesiser"):
        load_synthesizer("demo-ctc")


def test_the_command(folder: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    sound, times = tmp_path / "a.wav", tmp_path / "a.json"
    result = runner.invoke(main, ["synthesize", "hello you", "-m", str(folder), "-o", str(sound), "--alignment", str(times)])
    assert result.exit_code == 0, result.output
    wave, rate = soundfile.read(sound)
    assert rate == 16000
    assert json.loads(times.read_text())[-1]["end"] == pytest.approx(len(wave) / 16000)
    (tmp_path / "text.txt").write_text("from a file", encoding="utf-8")
    for name in ("b.flac", "b.ogg"):
        command = ["synthesize", "-i", str(tmp_path / "text.txt"), "-m", str(folder), "-o", str(tmp_path / name), "--speed", "2"]
        assert runner.invoke(main, command).exit_code == 0
        assert soundfile.info(tmp_path / name).samplerate == 16000
    for more in ([], ["-o", "-"]):
        piped = runner.invoke(main, ["synthesize", "-i", "-", "-m", str(folder), *more], input="from a pipe")
        assert piped.stdout_bytes[:4] == b"RIFF"
        assert re.search(r"^first audio after \d+\.\d\d s, \d+\.\d\d s at 16000 Hz$", piped.stderr, re.MULTILINE)


def test_the_command_speaks_as_synthesize_does(folder: Path, tmp_path: Path) -> None:
    """Piece by piece: of a book, no more than some pieces are in memory."""
    text = "This is the first sentence, of more than sixty letters and two clauses. The second.\n\nAnd a third; it ends"
    expected = load_synthesizer(folder, device="cpu").synthesize(text, energy=1.0, pauses=2.0, batch_size=1)
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    command = ["synthesize", "-i", str(tmp_path / "text.txt"), "-m", str(folder), "-o", str(tmp_path / "a.wav"), "--pauses", "2"]
    command += ["--option", "energy=1.0", "--batch-size", "2", "--threads", "1", "--device", "cpu", "--dtype", "float32"]
    threads = torch.get_num_threads()
    try:
        result = CliRunner().invoke(main, [*command, "--alignment", str(tmp_path / "a.json")])
    finally:
        torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    assert re.search(r"a\.wav: first audio after \d+\.\d\d s, \d+\.\d\d s at 16000 Hz", result.stderr)
    wave, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
    np.testing.assert_allclose(wave, expected.wave, atol=4e-3)
    rows = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert [row["phone"] for row in rows] == [phone.symbol for phone in expected.alignment]
    assert [row["end"] for row in rows] == pytest.approx([phone.end for phone in expected.alignment])


def test_the_longest_piece_comes_with_the_folder(folder: Path, tmp_path: Path) -> None:
    assert load_synthesizer(folder).max_chars == 200
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    with (copy / "config.yaml").open("a", encoding="utf-8") as config:
        config.write("max_chars: 12\n")
    short = load_synthesizer(copy)
    assert short.max_chars == 12
    assert [piece.text for piece in short.stream("these words are many", batch_size=2)] == ["these words", "are many"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "give a TEXT, or a file"),
        (["hi", "-o", "a.mp3"], "its suffix must be one of .wav, .flac, .ogg"),
        (["hi", "-o", "none/a.wav"], "there is no folder none; make it first"),
        (["hi", "-o", "a.wav", "--plot", "none/a.png"], "there is no folder none"),
        (["hi", "-o", "a.wav", "--alignment", "none/a.json"], "there is no folder none"),
        (["hi", "-o", "a.wav", "--option", "num_steps=4"], "has no option num_steps; its options are energy, pitch, seed, speed"),
        (["hi", "-o", "a.wav", "--option", "energy=much"], "energy='much' must be a number"),
        (["hi", "-o", "a.wav", "--option", "energy"], "--option energy: give it as KEY=VALUE"),
        (["hi", "-o", "a.wav", "--option", "speed=2"], "--option speed=2: this is an option of the command itself; give --speed"),
        (["\U0001f600", "-o", "a.wav"], "there is nothing to say"),
        (["hi", "-o", "a.wav", "--speaker", "carl"], "speaker='carl'"),
        (["hi", "-o", "a.wav", "--prompt-text", "x", "--prompt", __file__], "audio"),
    ],
)
def test_what_the_command_refuses(folder: Path, arguments: list[str], reason: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["synthesize", *arguments, "-m", str(folder)])
    assert result.exit_code != 0
    assert reason in result.output
    assert not list(tmp_path.iterdir())


def test_wrong_outputs_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    for output in (tmp_path / "book.mp3", tmp_path / "none" / "book.wav"):
        result = CliRunner().invoke(main, ["synthesize", "hi", "-m", "no such model", "-o", str(output)])
        assert result.exit_code != 0
        assert str(output) in result.output


def test_a_picture(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    command = ["synthesize", "hello", "-m", str(folder), "-o", str(tmp_path / "a.wav"), "--plot", str(tmp_path / "a.png")]
    assert CliRunner().invoke(main, command).exit_code == 0
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"

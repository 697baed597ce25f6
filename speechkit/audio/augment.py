"""Augmentation of waveforms: speed, level, pauses, noise, reverberation, codecs.

Every augmenter is called as `(wave_N, sample_rate, rng) -> wave_N` with float32 samples, is pure numpy, and draws all
its random numbers from `rng`: the same generator state gives the same result. Only `SpeedPerturb` and `PadSilence`
change the length; `max_stretch` and `max_added` tell by how much at most, for samplers that plan with durations.
Augmentation of features is in `speechkit.audio.spec_augment`.

Sources: Ko et al., "Audio augmentation for speech recognition", Interspeech 2015 (speed); Ko et al., "A study on data
augmentation of reverberant speech for robust speech recognition", ICASSP 2017 (noise, reverberation).

Shape legend: N samples.
"""

from __future__ import annotations

import functools
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import soundfile

from speechkit.audio.io import load_audio, resample
from speechkit.types import Seconds

_CODEC_FORMATS = {"mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS"), "vorbis": ("OGG", "VORBIS")}
_CODEC_RATES = {"mp3": (8000, 16000, 22050, 24000, 44100, 48000), "opus": (8000, 16000, 24000, 48000)}
_TELEPHONE_RATE = 8000
_LEAST_COLOURED_HZ = 50.0


class WaveTransform(Protocol):
    """An augmenter.

    Attributes:
        max_stretch: the most by which it multiplies the length.
        max_added: the most that it adds to the length after that, in seconds.
    """

    max_stretch: float
    max_added: Seconds

    def __call__(self, wave_N: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Augments samples of shape (N,), float32; the input is left as it is."""
        ...


class Compose:
    """Augmenters one after the other."""

    def __init__(self, *, transforms: Sequence[WaveTransform]) -> None:
        """Creates the chain; an empty one changes nothing."""
        self.transforms = tuple(transforms)
        self.max_stretch, self.max_added = 1.0, 0.0
        for transform in self.transforms:
            stretch = getattr(transform, "max_stretch", 1.0)
            self.max_stretch *= stretch
            self.max_added = self.max_added * stretch + getattr(transform, "max_added", 0.0)

    def __call__(self, wave_N: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Applies all, in order."""
        for transform in self.transforms:
            wave_N = transform(wave_N, sample_rate, rng)
        return wave_N


class SpeedPerturb:
    """Plays faster or slower, as Kaldi does: tempo and pitch change together, and N samples become N / factor."""

    max_added = 0.0

    def __init__(self, *, factors: Sequence[float] = (0.9, 1.0, 1.1), probability: float = 1.0) -> None:
        """Creates the augmenter.

        Args:
            factors: one is drawn for each utterance; above 1 is faster.
            probability: of drawing one at all.
        """
        _check_probability(probability)
        self.factors = tuple(float(factor) for factor in factors)
        if not self.factors or not all(0.25 <= factor <= 4 for factor in self.factors):
            raise ValueError(f"factors={list(factors)}: must be numbers from 0.25 to 4, at least one")
        self.probability = probability
        self.max_stretch = max(1.0, 1.0 / min(self.factors)) if probability > 0 else 1.0

    def __call__(self, wave_N: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Resamples by a ratio."""
        if rng.random() >= self.probability:
            return wave_N
        factor = self.factors[rng.integers(len(self.factors))]
        faster_N = resample(wave_N, round(sample_rate * factor), sample_rate)
        return faster_N if len(faster_N) else wave_N


class Gain:
    """Changes the level by a random number of decibels. Samples may leave [-1, 1]; nothing is clipped."""

    max_stretch = 1.0
    max_added = 0.0

    def __init__(self, *, min_db: float = -12.0, max_db: float = 6.0, probability: float = 1.0) -> None:
        """Creates the augmenter.

        Args:
            min_db: least change of level, dB.
            max_db: greatest change of level, dB.
            probability: of changing it at all.
        """
        _check_probability(probability)
        _check_range("min_db", min_db, "max_db", max_db)
        self.min_db, self.max_db = min_db, max_db
        self.probability = probability

    def __call__(self, wave_N: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Scales."""
        if rng.random() >= self.probability:
            return wave_N
        return wave_N * np.float32(10.0 ** (rng.uniform(self.min_db, self.max_db) / 20.0))


class RandomShift:
    """Cuts off a random beginning, shorter than one output frame of most encoders.

    Without it an utterance lies on the same grid of output frames in every epoch (with subsampling by 4, every 40 ms), and
    a model of a small corpus learns the grid: cut 10 ms elsewhere, the same speech reads otherwise.
    """

    max_stretch = 1.0
    max_added = 0.0

    def __init__(self, *, max_seconds: Seconds = 0.04) -> None:
        """Creates the augmenter.

        Args:
            max_seconds: what is cut off is drawn evenly from 0 to this. An utterance keeps at least half of its samples.
        """
        if not 0 <= max_seconds <= 1:
            raise ValueError(f"max_seconds={max_seconds}: must be from 0 to 1")
        self.max_seconds = max_seconds

    def __call__(self, wave_N: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Cuts."""
        return wave_N[min(int(rng.uniform(0.0, self.max_seconds) * sample_rate), len(wave_N) // 2) :]


class PadSilence:
    """Puts pauses before and after: so a recogniser learns that silence is no word, and where utterances do not end.

    The pauses hold white noise as loud as the quietest tenth of the utterance, or digital silence, in equal shares.
    """

    max_stretch = 1.0

    def __init__(self, *, max_seconds: Seconds = 0.5, probability: float = 0.5) -> None:
        """Creates the augmenter.

        Args:
            max_seconds: longest pause on either side; both lengths are drawn evenly from 0 to this.
            probability: of adding pauses at all.
        """
        _check_probability(probability)
        if not 0 <= max_seconds <= 60:
            raise ValueError(f"max_seconds={max_seconds}: must be from 0 to 60")
        self.max_seconds = max_seconds
        self.probability = probability
        self.max_added = 2.0 * max_seconds if probability > 0 else 0.0

    def __call__(self, wave_N: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Pads."""
        if rng.random() >= self.probability:
            return wave_N
        before, after = (int(seconds * sample_rate) for seconds in rng.uniform(0.0, self.max_seconds, size=2))
        padded_N = np.zeros(before + len(wave_N) + after, np.float32)
        padded_N[before : before + len(wave_N)] = wave_N
        if rng.random() < 0.5:
            level = _quiet_level(wave_N, sample_rate)
            padded_N[:before] = level * rng.standard_normal(before, dtype=np.float32)
            padded_N[before + len(wave_N) :] = level * rng.standard_normal(after, dtype=np.float32)
        return padded_N


class AddNoise:
    """Mixes in noise at a random signal-to-noise ratio over the whole utterance.

    The noise is a random stretch of a random recording of a manifest (repeated where it is too short), or, without a
    manifest, coloured: its power falls with frequency as f^-c, from white (c = 0) over pink (1) to brown (2).
    """

    max_stretch = 1.0
    max_added = 0.0

    def __init__(
        self,
        *,
        manifest: str | os.PathLike[str] | None = None,
        min_snr_db: float = 5.0,
        max_snr_db: float = 25.0,
        probability: float = 0.5,
        max_colour: float = 2.0,
    ) -> None:
        """Creates the augmenter.

        Args:
            manifest: JSONL of noise recordings (`audio_filepath`, `duration`, `offset`); None for coloured noise.
            min_snr_db: least signal-to-noise ratio, dB.
            max_snr_db: greatest signal-to-noise ratio, dB.
            probability: of mixing in noise at all.
            max_colour: greatest exponent c of coloured noise; the least is 0.

        Raises:
            ValueError: the manifest cannot be read or lists nothing, or a value is out of range.
        """
        _check_probability(probability)
        _check_range("min_snr_db", min_snr_db, "max_snr_db", max_snr_db)
        if not 0 <= max_colour <= 4:
            raise ValueError(f"max_colour={max_colour}: must be from 0 to 4")
        self.recordings = _read_recordings(manifest) if manifest is not None else None
        self.min_snr_db, self.max_snr_db = min_snr_db, max_snr_db
        self.probability = probability
        self.max_colour = max_colour

    def __call__(self, wave_N: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Adds noise; digital silence stays as it is."""
        if rng.random() >= self.probability or not len(wave_N):
            return wave_N
        snr_db = rng.uniform(self.min_snr_db, self.max_snr_db)
        if self.recordings is None:
            noise_N = coloured_noise(len(wave_N), sample_rate, rng.uniform(0.0, self.max_colour), rng)
        else:
            noise_N = self._recorded(len(wave_N), sample_rate, rng)
        speech_power, noise_power = _power(wave_N), _power(noise_N)
        if speech_power == 0.0 or noise_power == 0.0:
            return wave_N
        scale = np.sqrt(speech_power / noise_power * 10.0 ** (-snr_db / 10.0))
        return wave_N + np.float32(scale) * noise_N

    def _recorded(self, num_samples: int, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        assert self.recordings is not None
        recording = self.recordings[rng.integers(len(self.recordings))]
        wanted = num_samples / sample_rate
        slack = max(0.0, recording.duration - wanted)
        noise_N, _ = load_audio(
            recording.path,
            sample_rate=sample_rate,
            start=recording.start + rng.uniform(0.0, slack),
            duration=min(wanted, recording.duration),
        )
        return np.resize(noise_N, num_samples)  # repeats from the beginning


class Reverb:
    """Convolves with a room's impulse response; length, level and alignment stay as they are.

    The response is a random one of a manifest, or, without a manifest, synthetic: a direct path, then noise that decays
    exponentially with a random reverberation time. The direct path (the largest sample) is put at time 0.
    """

    max_stretch = 1.0
    max_added = 0.0

    def __init__(
        self,
        *,
        manifest: str | os.PathLike[str] | None = None,
        min_rt60: Seconds = 0.1,
        max_rt60: Seconds = 0.7,
        min_drr_db: float = 0.0,
        max_drr_db: float = 15.0,
        probability: float = 0.5,
    ) -> None:
        """Creates the augmenter.

        Args:
            manifest: JSONL of impulse responses (`audio_filepath`, `duration`, `offset`); None for synthetic ones.
            min_rt60: least time in which a synthetic response falls by 60 dB, seconds.
            max_rt60: greatest such time, seconds.
            min_drr_db: least ratio of direct to reverberant power of a synthetic response, dB.
            max_drr_db: greatest such ratio, dB.
            probability: of convolving at all.

        Raises:
            ValueError: the manifest cannot be read or lists nothing, or a value is out of range.
        """
        _check_probability(probability)
        _check_range("min_rt60", min_rt60, "max_rt60", max_rt60)
        _check_range("min_drr_db", min_drr_db, "max_drr_db", max_drr_db)
        if not 0 < min_rt60 <= max_rt60 <= 10:
            raise ValueError(f"min_rt60={min_rt60}, max_rt60={max_rt60}: must be above 0 and at most 10 seconds")
        self.recordings = _read_recordings(manifest) if manifest is not None else None
        self.min_rt60, self.max_rt60 = min_rt60, max_rt60
        self.min_drr_db, self.max_drr_db = min_drr_db, max_drr_db
        self.probability = probability

    def __call__(self, wave_N: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Convolves."""
        if rng.random() >= self.probability or not len(wave_N):
            return wave_N
        if self.recordings is None:
            response = self._synthetic(sample_rate, rng)
        else:
            recording = self.recordings[rng.integers(len(self.recordings))]
            response = _load_response(recording, sample_rate)
        direct = int(np.argmax(np.abs(response)))
        wet_N = _convolve(wave_N, response)[direct : direct + len(wave_N)]
        power = _power(wet_N)
        if power == 0.0:
            return wave_N
        return (wet_N * np.sqrt(_power(wave_N) / power)).astype(np.float32)

    def _synthetic(self, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        rt60 = rng.uniform(self.min_rt60, self.max_rt60)
        drr_db = rng.uniform(self.min_drr_db, self.max_drr_db)
        time = np.arange(1, int(rt60 * sample_rate) + 1) / sample_rate
        tail = rng.standard_normal(len(time)) * 10.0 ** (-3.0 * time / rt60)
        tail *= np.sqrt(10.0 ** (-drr_db / 10.0) / max(float(tail @ tail), 1e-12))
        return np.concatenate([[max(1.0, 1.001 * float(np.abs(tail).max(initial=0.0)))], tail])


class CodecSim:
    """Passes speech through a telephone line or a lossy codec and back; length and alignment stay as they are.

    Codecs: "mulaw" (8 kHz, 8-bit mu-law, as on a telephone), "narrowband" (8 kHz), "mp3", "opus" and "vorbis" (encoded
    and decoded in memory by libsndfile, at a random compression). On one core "opus" costs a thirtieth of real time,
    "mp3" a hundredth, the others next to nothing.
    """

    max_stretch = 1.0
    max_added = 0.0

    def __init__(self, *, codecs: Sequence[str] = ("mulaw", "narrowband", "mp3"), probability: float = 0.3) -> None:
        """Creates the augmenter.

        Args:
            codecs: one is drawn for each utterance.
            probability: of using one at all.

        Raises:
            ValueError: a codec is unknown, or the installed libsndfile cannot encode it.
        """
        _check_probability(probability)
        known = ("mulaw", "narrowband", *_CODEC_FORMATS)
        for codec in codecs:
            if codec not in known:
                raise ValueError(f"codecs: {codec!r} is unknown; use some of {', '.join(known)}")
            if codec in _CODEC_FORMATS and not soundfile.check_format(*_CODEC_FORMATS[codec]):
                raise ValueError(f"codecs: libsndfile {soundfile.__libsndfile_version__} lacks {codec!r}; leave it out")
        if not codecs:
            raise ValueError("codecs: is empty; name at least one")
        self.codecs = tuple(codecs)
        self.probability = probability

    def __call__(self, wave_N: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Encodes and decodes."""
        if rng.random() >= self.probability or not len(wave_N):
            return wave_N
        codec = self.codecs[rng.integers(len(self.codecs))]
        if codec in _CODEC_FORMATS:
            coded_N, rate = _round_trip(wave_N, sample_rate, codec, compression=rng.uniform(0.3, 0.95))
        else:
            rate = min(sample_rate, _TELEPHONE_RATE)
            coded_N = resample(wave_N, sample_rate, rate)
            coded_N = _mu_law(coded_N) if codec == "mulaw" else coded_N
        return _fit(resample(coded_N, rate, sample_rate), len(wave_N))


def coloured_noise(num_samples: int, sample_rate: int, colour: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise whose power falls with frequency as f^-colour (0 white, 1 pink, 2 brown) above 50 Hz.

    Below 50 Hz the power is constant, or else most of it would be rumble that no one hears.

    Args:
        num_samples: N.
        sample_rate: Hz.
        colour: exponent.
        rng: source of the noise.

    Returns:
        Noise of variance about 1, float32, shape (N,).
    """
    size = _fft_size(num_samples)
    parts = rng.standard_normal((2, size // 2 + 1), dtype=np.float32)
    frequency = np.arange(size // 2 + 1) * (sample_rate / size)
    shape = np.maximum(frequency, _LEAST_COLOURED_HZ) ** (-colour / 2.0)
    shape[0] = 0.0
    shape *= np.sqrt(size / 2.0 / max(float(np.mean(shape**2)), 1e-12))
    spectrum = (parts[0] + 1j * parts[1]) * shape.astype(np.float32)
    return np.fft.irfft(spectrum, n=size)[:num_samples].astype(np.float32)


# ---- recordings ----


def _quiet_level(wave_N: np.ndarray, sample_rate: int) -> np.float32:
    """Level that a tenth of the 20 ms stretches of a waveform keep below; 0 for a waveform shorter than one."""
    window = max(1, sample_rate // 50)
    blocks_KW = wave_N[: len(wave_N) // window * window].reshape(-1, window)
    if len(blocks_KW) == 0:
        return np.float32(0.0)
    return np.float32(np.quantile(np.sqrt(np.square(blocks_KW).mean(axis=1)), 0.1))


class _Recording(NamedTuple):
    path: Path
    start: Seconds
    duration: Seconds


def _read_recordings(manifest: str | os.PathLike[str]) -> list[_Recording]:
    """Reads the audio columns of a manifest (the data layer, which reads whole ones, lies above this one)."""
    path = Path(manifest)
    recordings = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"manifest={path}: cannot be read ({error.strerror}); check the path") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            start, duration = float(row.get("offset") or 0.0), float(row["duration"])
            recordings.append(_Recording(path.parent / row["audio_filepath"], start, duration))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}:{number}: needs audio_filepath and duration as JSON ({error!r})") from error
        if not (duration > 0 and start >= 0):
            raise ValueError(f"{path}:{number}: duration={duration}, offset={start}: need above 0, and 0 or more")
    if not recordings:
        raise ValueError(f"manifest={path}: lists no recordings; add some or leave the manifest out")
    return recordings


@functools.lru_cache(maxsize=256)
def _load_response(recording: _Recording, sample_rate: int) -> np.ndarray:
    response, _ = load_audio(recording.path, sample_rate=sample_rate, start=recording.start, duration=recording.duration)
    response.setflags(write=False)
    return response


# ---- signal processing ----


def _round_trip(wave_N: np.ndarray, sample_rate: int, codec: str, *, compression: float) -> tuple[np.ndarray, int]:
    container, subtype = _CODEC_FORMATS[codec]
    rates = _CODEC_RATES.get(codec, (sample_rate,))
    rate = min((r for r in rates if r >= sample_rate), default=rates[-1])
    # Headroom: samples outside [-1, 1] would be clipped on the way in.
    peak = max(1.0, float(np.abs(wave_N).max()))
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, 1, subtype, format=container, compression_level=compression) as encoder:
        encoder.write(resample(wave_N / np.float32(peak), sample_rate, rate))
    file.seek(0)
    coded_N, _ = soundfile.read(file, dtype="float32")
    return coded_N * np.float32(peak), rate


def _mu_law(wave_N: np.ndarray) -> np.ndarray:
    """ITU-T G.711 companding to 8 bits and back."""
    clipped_N = np.clip(wave_N, -1.0, 1.0)
    code_N = np.sign(clipped_N) * np.log1p(255.0 * np.abs(clipped_N)) / np.log(256.0)
    code_N = np.rint(code_N * 127.0) / 127.0
    return (np.sign(code_N) * np.expm1(np.abs(code_N) * np.log(256.0)) / 255.0).astype(np.float32)


def _convolve(wave_N: np.ndarray, response: np.ndarray) -> np.ndarray:
    total = len(wave_N) + len(response) - 1
    size = _fft_size(total)
    response = response.astype(np.float32, copy=False)
    return np.fft.irfft(np.fft.rfft(wave_N, size) * np.fft.rfft(response, size), size)[:total]


def _fft_size(least: int) -> int:
    """The next number of the form 2^k, 3 * 2^k or 5 * 2^k: fast to transform, at most a quarter too large."""
    power = 1 << max(0, (max(least, 1) - 1).bit_length())
    return min(size for size in (power, power * 3 // 4, power * 5 // 8) if size >= least)


def _fit(wave_N: np.ndarray, num_samples: int) -> np.ndarray:
    return wave_N[:num_samples] if len(wave_N) >= num_samples else np.pad(wave_N, (0, num_samples - len(wave_N)))


def _power(wave_N: np.ndarray) -> float:
    return float(np.mean(np.square(wave_N, dtype=np.float64))) if len(wave_N) else 0.0


def _check_probability(probability: float) -> None:
    if not 0 <= probability <= 1:
        raise ValueError(f"probability={probability}: must be from 0 to 1")


def _check_range(low_name: str, low: float, high_name: str, high: float) -> None:
    if not low <= high:
        raise ValueError(f"{low_name}={low}, {high_name}={high}: the first must not exceed the second")

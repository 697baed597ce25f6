"""Planning an epoch of batches over numpy columns: the mathematics behind `BucketBatchSampler`.

The plan is one walk through all utterances, cut into steps. The walk visits narrow strips of duration from the longest
to the shortest and, inside a strip, goes through the token counts, upwards in one strip and downwards in the next, so
that neighbours on the walk are alike in both and the end of one strip meets the like end of the next. Three random
things make every epoch a fresh one: where the strips begin, the order of equal token counts, and a displacement of each
utterance along the walk by up to a few batches. The walk is then cut into steps of `world_size` equally large
batches under the padded budget, and the steps are shuffled.

Everything is a pure function of the columns and one random generator: no Python object per utterance, two sorts of
packed 64-bit keys and one pass that cuts. Background: two-dimensional bucketing as in Canary (Zelasko et al. 2025,
"Training and Inference Efficiency of Encoder-Decoder Speech Models", section 3); spacing strips by the square root of
the density is Panter and Dite's rule (1951) for an error that is linear in the strip's width.

Shape legend: N utterances on the walk, S steps, W ranks (world size), K strips or table rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from speechkit.types import Seconds

IntArray = npt.NDArray[np.integer]
FloatArray = npt.NDArray[np.floating]

MAX_CAPACITY = np.iinfo(np.uint16).max
MAX_STRIPS = 4000
_GRID_LEVELS = 1 << 16
_CHUNK = 1 << 20
_STRIP_SHIFT, _INNER_BITS, _INDEX_BITS = 52, 20, 32
_INDEX_MASK = np.uint64((1 << _INDEX_BITS) - 1)


@dataclass(frozen=True, slots=True)
class Budget:
    """What one batch may hold, always in padded units: batch size x its longest member.

    Attributes:
        max_batch_seconds: largest padded seconds of a batch.
        quadratic_duration: q; a duration d then costs d + d^2 / q, so that cost doubles at d = q.
        max_batch_size: largest number of utterances.
        max_batch_tokens: largest padded number of tokens.
    """

    max_batch_seconds: Seconds
    quadratic_duration: Seconds | None = None
    max_batch_size: int | None = None
    max_batch_tokens: int | None = None

    def cost(self, durations: FloatArray) -> FloatArray:
        """Effective seconds of each duration, float64."""
        cost = np.asarray(durations, dtype=np.float64)
        return cost if self.quadratic_duration is None else cost + cost**2 / self.quadratic_duration

    def capacity(self, durations_N: FloatArray, num_tokens_N: IntArray | None) -> npt.NDArray[np.uint16]:
        """Largest batch that each utterance may be in, were it the longest there; 0 where it does not fit alone."""
        capacity_N = np.empty(len(durations_N), dtype=np.uint16)
        for begin in range(0, len(durations_N), _CHUNK):
            part = slice(begin, begin + _CHUNK)
            cost = self.cost(durations_N[part])
            most = np.floor(self.max_batch_seconds / cost)
            most -= most * cost > self.max_batch_seconds  # the division may have rounded up
            if self.max_batch_tokens is not None and num_tokens_N is not None:
                most = np.minimum(most, self.max_batch_tokens // np.maximum(num_tokens_N[part], 1))
            capacity_N[part] = np.minimum(most, self.max_batch_size or MAX_CAPACITY)
        return capacity_N


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """What planning needs to know of each utterance; one entry per place on the walk before ordering.

    Attributes:
        capacity_N: largest batch that the utterance may be in, uint16, at least 1.
        strips_N: place on the strip axis, uint16: a level of `strip_levels` (0 shortest), or a table row.
        num_tokens_N: target tokens, or None to plan over durations alone.
    """

    capacity_N: npt.NDArray[np.uint16]
    strips_N: npt.NDArray[np.uint16]
    num_tokens_N: IntArray | None

    def take(self, indices: IntArray) -> Columns:
        """The columns of some utterances, which may repeat."""
        tokens = self.num_tokens_N
        return Columns(self.capacity_N[indices], self.strips_N[indices], None if tokens is None else tokens[indices])


@dataclass(frozen=True, slots=True)
class Layout:
    """How the walk is laid out and shuffled.

    Attributes:
        num_strips: number of duration strips, or of table rows when `fixed_rows`.
        fixed_rows: strips are the rows of a table: their borders do not move, and no batch crosses one.
        window: how far an utterance may move along the walk, in batches to either side; 0 keeps the order.
        shuffle: draw everything that is random; otherwise the plan is sorted, longest first.
        drop_last: leave out steps that could not be filled.
    """

    num_strips: int
    fixed_rows: bool
    window: float
    shuffle: bool
    drop_last: bool


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The batches of one epoch for all ranks: a flat array of indices and where each step lies in it.

    Attributes:
        indices: utterance indices along the walk; int32 (int64 above 2^31 utterances).
        starts_S: where each step begins in `indices`, in the order in which steps are run.
        sizes_S: number of utterances of each step over all ranks, at least W.
        turns_S: by how many places ranks are rotated against the pieces of the step.
        world_size: W.
        left_out: utterance indices in no step (only with drop_last).
        repeated: utterance indices that were used twice because there was no other way to give each rank a batch.
    """

    indices: IntArray
    starts_S: npt.NDArray[np.int64]
    sizes_S: npt.NDArray[np.int64]
    turns_S: npt.NDArray[np.int64]
    world_size: int
    left_out: IntArray
    repeated: IntArray

    def __len__(self) -> int:
        """Number of steps, the same on every rank."""
        return len(self.starts_S)

    def bounds(self, rank: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Begin and end in `indices` of the batch of one rank at every step; sizes differ by 1 at most over ranks."""
        piece_S = (rank + self.turns_S) % self.world_size
        share_S, extra_S = np.divmod(self.sizes_S, self.world_size)
        begin_S = self.starts_S + piece_S * share_S + np.minimum(piece_S, extra_S)
        return begin_S, begin_S + share_S + (piece_S < extra_S)

    def renamed(self, names: IntArray) -> Plan:
        """The same plan with index i called names[i]."""
        return replace(
            self, indices=names[self.indices], left_out=names[self.left_out], repeated=names[self.repeated]
        )


def strip_levels(
    durations_N: FloatArray, capacity_N: npt.NDArray[np.uint16], *, num_strips: int, min_batches: float
) -> npt.NDArray[np.uint16]:
    """Maps durations monotonically to 65,536 levels such that equally many levels make strips of least total padding.

    A strip of width w at density f wastes about f * w^2 / 2, which for a given number of strips is least for w in
    proportion to f^(-1/2): strips are equally wide on the running integral of the root of the density. The density is
    a histogram over log-duration, so that a single hour-long recording does not coarsen the rest. Where a strip would
    hold fewer than `min_batches` batches it is widened, or its utterances would meet again every epoch.

    Args:
        durations_N: seconds.
        capacity_N: batch size around each utterance, at least 1.
        num_strips: number of strips that will be made, at most (sum of 1 / capacity) / min_batches for a guarantee.
        min_batches: how many batches a strip should hold at least.
    """
    low, high = float(durations_N.min()), float(durations_N.max())
    if low == high:
        return np.zeros(len(durations_N), dtype=np.uint16)
    scale = (_GRID_LEVELS - 1) / np.log(high / low)
    fine_N = np.empty(len(durations_N), dtype=np.uint16)
    batches = np.zeros(_GRID_LEVELS)
    for begin in range(0, len(durations_N), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        fine_N[part] = np.clip(np.log(durations_N[part] / low) * scale, 0, _GRID_LEVELS - 1)
        batches += np.bincount(fine_N[part], weights=1.0 / capacity_N[part], minlength=_GRID_LEVELS)
    num_coarse = int(np.clip(len(durations_N) // 50, 16, 2048))
    edges = np.linspace(0, _GRID_LEVELS, num_coarse + 1).astype(np.int64)
    counts = np.add.reduceat(np.bincount(fine_N, minlength=_GRID_LEVELS), edges[:-1])
    batches = np.add.reduceat(batches, edges[:-1])
    measure = np.sqrt(counts * np.diff(np.exp(edges / scale)))
    for _ in range(20):  # a strip spans sum / num_strips of the measure, so limit the measure per batch
        measure = np.minimum(measure, batches * (measure.sum() / (num_strips * min_batches)))
    integral = np.concatenate([[0.0], np.cumsum(measure)])
    level_of_fine = np.interp(np.arange(_GRID_LEVELS) + 0.5, edges, integral / integral[-1] * (_GRID_LEVELS - 1))
    return level_of_fine.astype(np.uint16)[fine_N]


def make_plan(columns: Columns, *, layout: Layout, world_size: int, rng: np.random.Generator) -> Plan:
    """Plans one epoch: orders the utterances along the walk, cuts it into steps, shuffles the steps.

    Args:
        columns: the utterances of the epoch, N of them; N may be 0.
        layout: strips, shuffling and the treatment of remainders.
        world_size: number of ranks, W.
        rng: the only source of randomness; equal on all ranks.

    Returns:
        The plan; its `indices` are places in `columns`.
    """
    order_N, segment_N, num_segments = _walk(columns, layout=layout, rng=rng)
    capacity_N = columns.capacity_N[order_N]
    borders = np.array([len(order_N)])
    if layout.fixed_rows:
        borders = np.cumsum(np.bincount(segment_N, minlength=num_segments))
    starts_S, sizes_S, full_S = _cut_segments(capacity_N, borders, world_size=world_size, layout=layout, rng=rng)
    left_out = repeated = order_N[:0]
    if layout.drop_last:
        unfilled = zip(starts_S[~full_S].tolist(), sizes_S[~full_S].tolist(), strict=True)
        left_out = np.concatenate([left_out, *(order_N[start : start + size] for start, size in unfilled)])
        starts_S, sizes_S = starts_S[full_S], sizes_S[full_S]
    else:
        order_N, starts_S, sizes_S, repeated = _share_remainder(order_N, starts_S, sizes_S, world_size)
    num_steps = len(starts_S)
    turns_S = np.zeros(num_steps, dtype=np.int64)
    if layout.shuffle:
        run_S = rng.permutation(num_steps)
        starts_S, sizes_S = starts_S[run_S], sizes_S[run_S]
        turns_S = rng.integers(world_size, size=num_steps)
    return Plan(order_N, starts_S, sizes_S, turns_S, world_size, left_out, repeated)


def _walk(columns: Columns, *, layout: Layout, rng: np.random.Generator) -> tuple[IntArray, IntArray, int]:
    """Orders all utterances along the walk.

    Returns:
        order_N (place in the columns), the strip of each place on the walk, and the number of strips.
    """
    num = len(columns.capacity_N)
    num_strips = layout.num_strips
    strip_N = columns.strips_N.astype(np.int32)
    if not layout.fixed_rows:  # num_strips - 1 borders one strip apart, the first half to one and a half strips in
        first_border = int(rng.integers(_GRID_LEVELS)) + _GRID_LEVELS // 2 if layout.shuffle else _GRID_LEVELS
        strip_N *= num_strips
        strip_N += _GRID_LEVELS - first_border
        strip_N >>= 16
        np.clip(strip_N, 0, num_strips - 1, out=strip_N)
    np.subtract(num_strips - 1, strip_N, out=strip_N)  # longest first
    packed_N = strip_N.astype(np.uint64) << np.uint64(_STRIP_SHIFT)
    packed_N |= _inner_keys(columns.num_tokens_N, strip_N, shuffle=layout.shuffle, rng=rng)
    packed_N |= np.arange(num, dtype=np.uint64)
    del strip_N
    packed_N.sort()
    order_N: IntArray = (packed_N & _INDEX_MASK).astype(np.int32 if num <= np.iinfo(np.int32).max else np.int64)
    segment_N = (packed_N >> np.uint64(_STRIP_SHIFT)).astype(np.int16)
    del packed_N
    if layout.shuffle and layout.window > 0 and columns.num_tokens_N is not None:
        reach_N = (columns.capacity_N[order_N] * np.float32(layout.window)).astype(np.int32)
        order_N = order_N[_displaced(reach_N, segment_N, num_strips, rng)]
    return order_N, segment_N, num_strips


def _inner_keys(
    num_tokens_N: IntArray | None, strip_N: npt.NDArray[np.int32], *, shuffle: bool, rng: np.random.Generator
) -> npt.NDArray[np.uint64]:
    """Sort keys inside a strip, in place above the index bits: tokens up in even strips, down in odd ones.

    A fraction drawn for each utterance puts equal token counts in random order, and everything when there are none.
    """
    num = len(strip_N)
    key_N = rng.random(num, dtype=np.float32) if shuffle else np.zeros(num, dtype=np.float32)
    most = 1.0
    if num_tokens_N is not None and num:
        most = float(num_tokens_N.max()) + 1.0
        key_N += num_tokens_N
    top = np.uint32((1 << _INNER_BITS) - 1)
    inner_N = np.minimum(key_N * np.float32(top / most), top).astype(np.uint32)
    np.subtract(top, inner_N, out=inner_N, where=(strip_N & 1).astype(bool))
    keys_N = inner_N.astype(np.uint64)
    keys_N <<= np.uint64(_INDEX_BITS)
    return keys_N


def _displaced(
    reach_N: npt.NDArray[np.int32], segment_N: IntArray, num_segments: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """A random order in which each place moved by about `reach_N` places at most, never out of its segment."""
    num = len(reach_N)
    counts_K = np.bincount(segment_N, minlength=num_segments)
    ends_K = np.cumsum(counts_K)
    place_N = np.arange(num, dtype=np.int64)
    low_N = np.maximum(place_N - reach_N, (ends_K - counts_K)[segment_N])
    span_N = np.minimum(place_N + reach_N + 1, ends_K[segment_N]) - low_N
    low_N += (rng.random(num, dtype=np.float32) * span_N).astype(np.int64)
    del span_N
    target_N = np.minimum(low_N, ends_K[segment_N] - 1, out=low_N).view(np.uint64)
    target_N <<= np.uint64(_INDEX_BITS)
    target_N |= place_N.view(np.uint64)
    target_N.sort()
    target_N &= _INDEX_MASK
    return target_N.view(np.int64)


def _cut_segments(
    capacity_N: npt.NDArray[np.uint16],
    borders: IntArray,
    *,
    world_size: int,
    layout: Layout,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Cuts the walk into steps that cross no border.

    A step of n utterances satisfies n <= W * (least capacity in it), so each of its W batches keeps the budget. Every
    segment is cut from both ends towards a random place: the one step that cannot be filled then is a different one
    each epoch, and no utterance is always among the remainder.

    Returns:
        starts_S, sizes_S, and full_S, which is False for the at most one unfilled step of each segment.
    """
    starts: list[npt.NDArray[np.int64]] = []
    sizes: list[npt.NDArray[np.int64]] = []
    full: list[npt.NDArray[np.bool_]] = []
    begin = 0
    for end in borders.tolist():
        part = capacity_N[begin:end]
        middle = int(rng.integers(len(part) + 1)) if layout.shuffle else len(part)
        head = cut(part[:middle], world_size)
        tail = len(part) - cut(part[middle:][::-1], world_size)[::-1]
        join = head[-1] + cut(part[head[-1] : tail[0]], world_size)
        is_filled = join[-1] == tail[0]
        cuts = np.concatenate([head, join[1:], tail[1:] if is_filled else tail])
        mark = np.ones(len(cuts) - 1, dtype=bool)
        if not is_filled:
            mark[len(head) + len(join) - 2] = False
        starts.append(begin + cuts[:-1])
        sizes.append(np.diff(cuts))
        full.append(mark)
        begin = end
    return np.concatenate(starts), np.concatenate(sizes), np.concatenate(full)


def cut(capacity_N: npt.NDArray[np.uint16], world_size: int = 1) -> npt.NDArray[np.int64]:
    """Cuts a sequence into filled steps: a step of n has n <= world_size * (least capacity in it).

    A step is as long as its first member allows and the least of the members that it would have then: on a walk along
    which capacity changes slowly this is all but as long as it could be.

    Returns:
        The borders of the filled steps, beginning with 0; what lies behind the last border fills no step.
    """
    sizes_N = _window_minima(capacity_N.astype(np.int32) * world_size)
    cuts, end = [0], 0
    while end < len(sizes_N) and (end := end + int(sizes_N[end])) <= len(sizes_N):
        cuts.append(end)
    return np.array(cuts, dtype=np.int64)


def _window_minima(limits_N: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """For each place i the least of limits_N[i : i + limits_N[i]], as far as there are places.

    The minima of all windows of one power-of-two width come from those of half the width; two such windows, one at
    either end, cover a window of any width up to twice theirs.
    """
    num = len(limits_N)
    least_N, minima_N = limits_N.copy(), limits_N.copy()
    width, widest = 1, int(limits_N.max(initial=0))
    while width <= min(widest, num):  # least_N[i] is the least of limits_N[i : i + width]
        for begin in range(0, num, _CHUNK):
            limits = limits_N[begin : begin + _CHUNK]
            places = np.flatnonzero((limits >= width) & (limits < 2 * width)) + begin
            seconds = np.maximum(np.minimum(places + limits_N[places], num) - width, places)
            minima_N[places] = np.minimum(least_N[places], least_N[seconds])
        np.minimum(least_N[:-width], least_N[width:], out=least_N[:-width])
        width *= 2
    np.minimum(minima_N, least_N, out=minima_N, where=limits_N >= width)
    return minima_N


def _share_remainder(
    order_N: IntArray, starts_S: npt.NDArray[np.int64], sizes_S: npt.NDArray[np.int64], world_size: int
) -> tuple[IntArray, npt.NDArray[np.int64], npt.NDArray[np.int64], IntArray]:
    """Gives every rank a batch where a step has fewer utterances than there are ranks.

    Such utterances are pooled into steps of one utterance per rank, which no budget forbids. What the last of these
    lacks is taken from the nearest steps that have more than one utterance per rank. Only when there are none (all
    batches hold one utterance, or the set is smaller than the number of ranks) are utterances used twice.

    Returns:
        order_N with the pool appended, starts_S, sizes_S, and the utterances that were repeated.
    """
    is_small_S = sizes_S < world_size
    if not is_small_S.any():
        return order_N, starts_S, sizes_S, order_N[:0]
    small = zip(starts_S[is_small_S].tolist(), sizes_S[is_small_S].tolist(), strict=True)
    places = np.concatenate([np.arange(start, start + size) for start, size in small])
    starts_S, sizes_S = starts_S[~is_small_S], sizes_S[~is_small_S].copy()
    lacking = -len(places) % world_size
    near_S = np.argsort(np.abs(starts_S - places[-1]), kind="stable")
    spare_S = sizes_S[near_S] - world_size
    taken_S = np.clip(lacking - (np.cumsum(spare_S) - spare_S), 0, spare_S)
    for step, taken in zip(near_S[taken_S > 0].tolist(), taken_S[taken_S > 0].tolist(), strict=True):
        sizes_S[step] -= taken
        end = starts_S[step] + sizes_S[step]
        places = np.concatenate([places, np.arange(end, end + taken)])
    again = (places[-1] - 1 - np.arange(-len(places) % world_size)) % len(order_N)
    places = np.concatenate([places, again])
    pool_starts = len(order_N) + np.arange(0, len(places), world_size)
    return (
        np.concatenate([order_N, order_N[places]]),
        np.concatenate([starts_S, pool_starts]),
        np.concatenate([sizes_S, np.full(len(pool_starts), world_size)]),
        order_N[again],
    )

"""What steps take at best: arithmetic, memory traffic and messages of one chip, counted by hand.

A step is a row of parts, one after the other. A part takes as long as its arithmetic or its
traffic, whichever is longer; messages between chips wait for what they carry, so they come on top.
Counted are matrices, the key/value cache in its whole length, and messages; what is left out
(norms, softmax, activations, the start of operations) makes real steps slower, not faster.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from jax.typing import DTypeLike

from flexdraft_jax.config import DraftConfig, TargetConfig
from flexdraft_jax.decoding.costs import StepCosts, Variant, flex_buckets
from flexdraft_jax.models.scopes import StepPart
from flexdraft_jax.parallel.devices import DEVICES, Device

# What a message takes from chip to chip, however small (jax-ml.github.io/scaling-book, "TPUs").
_HOP_SECONDS = 1e-6
# Chips that times are given for.
CHIPS = {
    "v5e": DEVICES["TPU v5 lite"],
    "v5p": DEVICES["TPU v5p"],
    "v6e": DEVICES["TPU v6 lite"],
    "H100": DEVICES["NVIDIA H100"],
}
# Fewer rows of a chip than this may be multiplied on a slower path: the plain decoding that drafts
# are held against is given as many at least, or it would be too easily beaten.
PLAIN_ROWS = 8


@dataclass(frozen=True)
class Message:
    """A collective, as one chip sees it.

    Attributes:
        kind: "all-reduce", "all-gather", ..
        sent: bytes that the chip sends each time.
        group: chips that take part.
        times: in one step.
    """

    kind: str
    sent: float
    group: int
    times: int

    def seconds(self, chip: Device) -> float:
        """All times together, with all links of the chip busy."""
        hops = {"all-reduce": self.group, "collective-permute": 1}.get(self.kind, self.group / 2)
        return self.times * max(hops * _HOP_SECONDS, self.sent / chip.interconnect)


@dataclass(frozen=True)
class Part:
    """Of a step, on one chip.

    Attributes:
        flops: arithmetic; a product of matrices [a, b] and [b, c] is 2abc.
        traffic: bytes from and to the chip's memory.
        times: how often it comes in one step.
    """

    flops: float
    traffic: float
    times: int = 1


@dataclass(frozen=True)
class StepWork:
    """A step on one chip."""

    parts: tuple[Part, ...]
    messages: tuple[Message, ...]

    def __add__(self, other: StepWork) -> StepWork:
        return StepWork(self.parts + other.parts, self.messages + other.messages)

    @property
    def flops(self) -> float:
        """Arithmetic of all parts."""
        return sum(part.flops * part.times for part in self.parts)

    @property
    def traffic(self) -> float:
        """Bytes from and to memory of all parts."""
        return sum(part.traffic * part.times for part in self.parts)

    def with_messages(self, messages: Sequence[Message]) -> StepWork:
        """With those that a compiler has made of it."""
        return dataclasses.replace(self, messages=tuple(messages))

    def milliseconds(self, chip: Device) -> float:
        """At best."""
        parts = sum(
            part.times * max(part.flops / chip.flops, part.traffic / chip.bandwidth)
            for part in self.parts
        )
        return 1e3 * (parts + sum(message.seconds(chip) for message in self.messages))


@dataclass(frozen=True)
class MeshParts:
    """A mesh, as counting needs it.

    Attributes:
        data: copies of the weights.
        fsdp: parts that weights are stored in, and gathered from.
        tensor: parts that a pass is computed in.
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    @property
    def rows(self) -> int:
        """Parts that the rows of a batch are spread over."""
        return self.data * self.fsdp


@dataclass(frozen=True)
class DecodeWork:
    """Counts the steps of one target and draft.

    Attributes:
        target: its shape.
        draft: its shape.
        block_size: n.
        dtype: of weights and cache.
        mesh: that they are spread over.
        num_slots: S.
    """

    target: TargetConfig
    draft: DraftConfig
    block_size: int
    dtype: DTypeLike
    mesh: MeshParts
    num_slots: int

    def step(self, variant: Variant, batch_size: int) -> StepWork:
        """One step of a batch of B rows, which must divide among the chips that rows lie on."""
        return sum(self.by_part(variant, batch_size).values(), StepWork((), ()))

    def by_part(self, variant: Variant, batch_size: int) -> Mapping[StepPart, StepWork]:
        """The same step, by its parts: of those that are matrices or read the cache."""
        t, tokens, drafting = self.target, variant.num_drafts + 1, self.draft.num_draft_layers
        work = {
            StepPart.SHALLOW_LAYERS: self._layers(tokens, t.num_layers - drafting, batch_size),
            StepPart.DRAFT_LAYERS: self._layers(tokens, drafting, batch_size),
            StepPart.LM_HEAD: self._head(tokens, batch_size),
        }
        if variant.schedule == "sequential":
            work[StepPart.MASK_TOKENS] = self._layers(self.block_size, drafting, batch_size)
        elif variant.schedule == "parallel":
            work[StepPart.MASK_TOKENS], mlp = self._riding(tokens, batch_size)
            work[StepPart.DRAFT_LAYERS] += mlp
        if variant.drafts:
            work[StepPart.LM_HEAD] += self._head(self.block_size - 1, batch_size)
            work[StepPart.CALIBRATION] = self._calibration(batch_size)
        return work

    def prefill(self, num_tokens: int, batch_size: int) -> StepWork:
        """Reading P tokens of each prompt, and the first draft."""
        read = self._layers(num_tokens, self.target.num_layers, batch_size)
        masks = self._layers(self.block_size, self.draft.num_draft_layers, batch_size)
        heads = self._head(1, batch_size) + self._head(self.block_size - 1, batch_size)
        return read + masks + heads + self._calibration(batch_size)

    def costs(self, batch_size: int, chip: Device) -> StepCosts:
        """What flex chooses by."""

        def of(schedule: str, num_drafts: int) -> float:
            return self.step(Variant(schedule, num_drafts), batch_size).milliseconds(chip)

        buckets = flex_buckets(self.block_size)
        return StepCosts(
            block_size=self.block_size,
            batch_size=batch_size,
            num_slots=self.num_slots,
            verify={v: of("ar", v) for v in (0, *buckets)},
            draft=of("sequential", 0) - of("ar", 0),
            parallel={v: of("parallel", v) for v in buckets},
        )

    @property
    def _item(self) -> int:
        return jnp.dtype(self.dtype).itemsize

    def _rows(self, batch_size: int) -> int:
        return max(batch_size // self.mesh.rows, 1)

    def _cached(self) -> int:
        """Numbers of one token's keys and values in one layer, on one chip."""
        t, tensor = self.target, self.mesh.tensor
        heads = t.num_kv_heads if t.num_kv_heads % tensor else t.num_kv_heads // tensor
        return 2 * heads * t.head_dim

    def _layers(self, tokens: int, count: int, batch_size: int) -> StepWork:
        """Whole layers: the target's own, or with the draft's attention, which is as large."""
        t, rows = self.target, self._rows(batch_size)
        matrices = self._layer(tokens, batch_size)
        attention = self._attention(rows, tokens, self.num_slots + tokens)
        weights = self._gathered(t.layer_weights, count)
        sums = self._sums(rows * tokens, 2 * count)
        parts = (dataclasses.replace(part, times=count) for part in (matrices, attention))
        return StepWork(tuple(parts), weights + sums)

    def _riding(self, groups: int, batch_size: int) -> tuple[StepWork, StepWork]:
        """Mask groups beside the candidates: on their own, and in the MLPs that both share."""
        t, rows, count = self.target, self._rows(batch_size), self.draft.num_draft_layers
        masks = groups * self.block_size
        own = self._matrix(t.attention_weights, rows * masks)
        # Of experts, those that the candidates alone would not have read are read as well.
        both, candidates = (self._layer(x, batch_size) for x in (groups + masks, groups))
        flops = both.flops - candidates.flops - own.flops
        mlp = Part(flops, both.traffic - candidates.traffic, count)
        attention = self._attention(rows, masks, self.num_slots + groups + self.block_size)
        parts = (dataclasses.replace(part, times=count) for part in (own, attention))
        weights = self._gathered(t.attention_weights, count)
        # Behind the MLP they are summed up together with the candidates: more bytes, no more sums.
        sums = self._sums(2 * rows * masks, count)
        return StepWork(tuple(parts), weights + sums), StepWork((mlp,), ())

    def _head(self, tokens: int, batch_size: int) -> StepWork:
        weights = self.target.vocab_size * self.target.hidden_size
        part = self._matrix(weights, self._rows(batch_size) * tokens)
        return StepWork((part,), self._gathered(weights, 1))

    def _calibration(self, batch_size: int) -> StepWork:
        t = self.target
        weights = self.draft.calibration_weights(t)
        part = self._matrix(weights, self._rows(batch_size) * (self.block_size - 1))
        return StepWork((part,), self._gathered(weights, 1))

    def _matrix(self, weights: float, tokens: int) -> Part:
        """Of as many entries, whole, read once and multiplied with the tokens of a chip."""
        own = weights / self.mesh.tensor
        return Part(2 * tokens * own, self._item * own)

    def _layer(self, tokens: int, batch_size: int) -> Part:
        """The matrices of a layer; tokens of each row. Experts are read for those of all rows."""
        t, own, everywhere = self.target, self._rows(batch_size) * tokens, batch_size * tokens
        multiplied = self._matrix(t.multiplied_layer_weights(everywhere), own)
        return Part(multiplied.flops, self._matrix(t.read_layer_weights(everywhere), own).traffic)

    def _attention(self, rows: int, queries: int, keys: int) -> Part:
        """The cache of a layer, read once; fresh keys and values are written to it."""
        heads = self.target.num_heads // self.mesh.tensor
        flops = 4 * rows * queries * keys * heads * self.target.head_dim
        return Part(flops, self._item * rows * keys * self._cached())

    def _sums(self, tokens: int, times: int) -> tuple[Message, ...]:
        """Of hidden states over `tensor`: behind attention, and behind the MLP."""
        parts = self.mesh.tensor
        if parts == 1:
            return ()
        sent = 2 * (parts - 1) / parts * self._item * tokens * self.target.hidden_size
        return (Message("all-reduce", sent, parts, times),)

    def _gathered(self, weights: float, times: int) -> tuple[Message, ...]:
        """Weights whose parts lie on `fsdp`, put together before they are used."""
        parts = self.mesh.fsdp
        if parts == 1:
            return ()
        sent = (parts - 1) / parts * self._item * weights / self.mesh.tensor
        return (Message("all-gather", sent, parts, times),)


def crossover(work: DecodeWork, chip: Device, largest: int = 1024) -> int | None:
    """The smallest batch from which on a sequential step takes less time than a parallel one.

    None if a parallel one is faster up to `largest` rows.
    """
    full = work.block_size - 1
    size, found = largest // work.mesh.rows * work.mesh.rows, None
    while size >= work.mesh.rows:
        parallel, sequential = (
            work.step(Variant(schedule, full), size).milliseconds(chip)
            for schedule in ("parallel", "sequential")
        )
        if parallel <= sequential:
            break
        found = size
        size -= work.mesh.rows
    return found


def plain_batch(batch_size: int, mesh: MeshParts) -> int:
    """Rows of the plain decoding that a batch is held against; see `PLAIN_ROWS`."""
    return max(batch_size, PLAIN_ROWS * mesh.rows)

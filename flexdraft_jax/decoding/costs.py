"""What decoding steps cost: measured on this machine where that was done, else estimated.

A profile is a small JSON file that `infer/measure_steps.py` writes, one for each shape of target
and draft, kind of device, dtype and way of spreading weights. Flex looks at ratios of costs alone.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from flexdraft_jax.checkpoints import fields
from flexdraft_jax.config import DraftConfig, TargetConfig
from flexdraft_jax.parallel.devices import DEVICES, Device, find_device

# Where profiles are looked for, and written; ~/.cache/flexdraft_jax without the variable.
PROFILES_VARIABLE = "FLEXDRAFT_JAX_PROFILES"
# Of whole calls: flex chooses among steps of the others.
FIXED_SCHEDULES = ("ar", "parallel", "sequential")
SCHEDULES = (*FIXED_SCHEDULES, "flex")
# Milliseconds, for a cost whose measurement is lost in noise: it has to be positive.
NEXT_TO_NOTHING = 1e-6


@dataclasses.dataclass(frozen=True)
class Variant:
    """A step of static shapes.

    Attributes:
        schedule: "ar" (drafts nothing), "parallel" or "sequential".
        num_drafts: how many drafts it can verify, v + 1 candidates in all.
    """

    schedule: str
    num_drafts: int

    @property
    def drafts(self) -> bool:
        """Whether it drafts the next block."""
        return self.schedule != "ar"


@dataclasses.dataclass(frozen=True)
class StepCosts:
    """Milliseconds of a step and its parts, at one size of block, batch and cache.

    Attributes:
        block_size: n.
        batch_size: B; on a mesh, rows of one device.
        num_slots: S.
        verify: a verify pass and all that every step does, by number of drafts; 0 is a plain step.
        draft: the draft pass of the sequential schedule, its heads included.
        parallel: a parallel step, by number of drafts.
        draw: how much longer it takes to draw one token of each row at random than to take the
            most likely one; the rest is of greedy steps. Next to nothing is unknown.
    """

    block_size: int
    batch_size: int
    num_slots: int
    verify: Mapping[int, float]
    draft: float
    parallel: Mapping[int, float]
    draw: float = NEXT_TO_NOTHING

    def of(self, variant: Variant, draws: bool = False) -> float:
        """A whole step; `draws` if it draws each candidate and each draft at random."""
        drawn = variant.num_drafts + 1 + (self.block_size - 1 if variant.drafts else 0)
        drawing = drawn * self.draw if draws else 0.0
        if variant.schedule == "parallel":
            return self.parallel[variant.num_drafts] + drawing
        return self.verify[variant.num_drafts] + (self.draft if variant.drafts else 0.0) + drawing


def draft_buckets(block_size: int) -> tuple[int, ...]:
    """Numbers of drafts that steps are compiled for: 1, 3, 7, ... n - 1.

    >>> draft_buckets(16)
    (1, 3, 7, 15)
    >>> draft_buckets(6)
    (1, 3, 5)
    """
    largest = block_size - 1
    doubling = (2**i - 1 for i in range(1, largest.bit_length() + 1))
    return (*(count for count in doubling if count < largest), largest)


def flex_buckets(block_size: int) -> tuple[int, ...]:
    """The same without 1, which wins next to nothing where 3 does not pay."""
    return tuple(count for count in draft_buckets(block_size) if count != 1 or block_size == 2)


def flex_variants(costs: StepCosts) -> tuple[Variant, ...]:
    """The steps that flex chooses from: the two that verify nothing, then one for each bucket.

    Parallel and sequential steps do the same, so the cheaper of them is enough.
    """
    largest = [
        min(
            (Variant(schedule, count) for schedule in ("sequential", "parallel")),
            key=costs.of,
        )
        for count in flex_buckets(costs.block_size)
    ]
    return (Variant("ar", 0), Variant("sequential", 0), *largest)


@dataclasses.dataclass(frozen=True)
class Profile:
    """Measured costs.

    Attributes:
        costs: at different sizes.
    """

    costs: tuple[StepCosts, ...]

    def nearest(self, block_size: int, batch_size: int, num_slots: int) -> StepCosts | None:
        """The costs at the sizes that are fewest doublings away; None without any of this n."""

        def distance(costs: StepCosts) -> float:
            return abs(math.log(costs.batch_size / batch_size)) + abs(
                math.log(costs.num_slots / num_slots)
            )

        return min(
            (costs for costs in self.costs if costs.block_size == block_size),
            key=distance,
            default=None,
        )

    def updated(self, costs: Sequence[StepCosts]) -> "Profile":
        """With newer measurements in the place of those at the same sizes."""
        sizes = {(c.block_size, c.batch_size, c.num_slots): c for c in (*self.costs, *costs)}
        return Profile(tuple(sizes[key] for key in sorted(sizes)))


def profile_path(
    target: TargetConfig, draft: DraftConfig, dtype: DTypeLike, mesh: Mesh | None = None
) -> pathlib.Path:
    """Where the profile of models of this shape is kept, on this kind of device.

    Of a mesh it depends on how weights are spread; copies of them (`data`) know nothing of each
    other, and share a profile.
    """
    directory = os.environ.get(PROFILES_VARIABLE) or pathlib.Path.home() / ".cache/flexdraft_jax"
    t, device = target, jax.devices()[0]
    sizes = {
        "L": t.num_layers,
        "D": draft.num_draft_layers,
        "E": t.hidden_size,
        "N": t.num_heads,
        "K": t.num_kv_heads,
        "H": t.head_dim,
        "F": t.intermediate_size,
        "V": t.vocab_size,
        "r": draft.calibration_rank,
    }
    if t.experts is not None:
        sizes |= {"X": t.experts.number, "k": t.experts.per_token}
    kind = f"cpu{os.cpu_count()}" if device.platform == "cpu" else device.device_kind
    shape = "".join(f"{axis}{size}" for axis, size in sizes.items())
    parts = [shape, kind.replace(" ", "_"), jnp.dtype(dtype).name]
    if mesh is not None:
        parts += [
            f"{axis}{mesh.shape[axis]}" for axis in ("fsdp", "tensor") if mesh.shape[axis] > 1
        ]
    name = f"{'-'.join(parts)}.json"
    return pathlib.Path(directory) / name


def find_profile(
    target: TargetConfig,
    draft: DraftConfig,
    dtype: DTypeLike,
    profile: Profile | str | os.PathLike[str] | None,
    block_size: int,
    mesh: Mesh | None,
) -> Profile | None:
    """The profile that a caller gave or named; else the one in its usual place, if there is one.

    Raises:
        ValueError: a file that is no profile; or one that was named and is not there, or has no
            costs of this block size.
        TypeError: neither a profile nor a path.
    """
    if profile is not None:
        if not isinstance(profile, Profile | str | os.PathLike):
            raise TypeError(f"profile={profile!r}: must be a Profile, a path or None")
        given = profile if isinstance(profile, Profile) else load_profile(profile)
        if given.nearest(block_size, 1, 1) is None:
            name = "" if isinstance(profile, Profile) else f"={os.fspath(profile)!r}"
            held = sorted({costs.block_size for costs in given.costs})
            raise ValueError(
                f"profile{name}: has no costs of block_size={block_size}, only of {held}; measure "
                "them with infer/measure_steps.py, or leave the profile out to estimate"
            )
        return given
    try:
        usual = profile_path(target, draft, dtype, mesh)
        there = usual.exists()
    except (OSError, RuntimeError):  # No home, or none that may be read.
        return None
    return load_profile(usual) if there else None


def load_profile(path: str | os.PathLike[str]) -> Profile:
    """Reads a profile.

    Raises:
        ValueError: a file that can't be read or is no profile; it is named, with what is wrong.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text())
        entries = content["costs"]
        return Profile(tuple(_read_costs(entry, f"costs[{i}]") for i, entry in enumerate(entries)))
    except (OSError, ValueError, LookupError, RecursionError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{os.fspath(path)}: not a profile of step costs ({error}); remove the file, or write "
            "it again with infer/measure_steps.py"
        ) from error


def save_profile(profile: Profile, path: str | os.PathLike[str]) -> None:
    """Writes a profile, whole or not at all; makes its directory."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    content = {"costs": [dataclasses.asdict(costs) for costs in profile.costs]}
    unfinished.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(unfinished, path)


@dataclasses.dataclass(frozen=True)
class CostModel:
    """Costs of the steps of one target and draft at any size.

    Attributes:
        target: its shape.
        draft: its shape.
        dtype: of the weights.
        block_size: n.
        profile: what was measured; None estimates everything.
    """

    target: TargetConfig
    draft: DraftConfig
    dtype: DTypeLike
    block_size: int
    profile: Profile | None
    # Every call of the loop asks, for the same few sizes.
    _known: dict[tuple[int, int], StepCosts] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def at(self, batch_size: int, num_slots: int) -> StepCosts:
        """Costs at B and S: measured, or the nearest measurement times an estimated factor."""
        size = batch_size, num_slots
        if size not in self._known:
            self._known[size] = self._at(*size)
        return self._known[size]

    def _at(self, batch_size: int, num_slots: int) -> StepCosts:
        here = self._estimate(batch_size, num_slots)
        if self.profile is None:
            return here
        measured = self.profile.nearest(self.block_size, batch_size, num_slots)
        if measured is None:
            return here
        there = self._estimate(measured.batch_size, measured.num_slots)
        scaled: dict[str, Any] = {
            part: {
                v: ms * getattr(here, part)[v] / getattr(there, part)[v] for v, ms in by_v.items()
            }
            for part, by_v in (("verify", measured.verify), ("parallel", measured.parallel))
        }
        scaled["draft"] = measured.draft * here.draft / there.draft
        if measured.draw > NEXT_TO_NOTHING:
            scaled["draw"] = measured.draw * here.draw / there.draw
        return dataclasses.replace(here, **scaled)

    def _estimate(self, batch_size: int, num_slots: int) -> StepCosts:
        return estimate_costs(
            self.target, self.draft, self.dtype, self.block_size, batch_size, num_slots
        )


# Rough. A CPU's are of one core; an accelerator that nobody knows is taken for an A100. What a
# layer costs beside arithmetic and traffic is mostly the start of its operations.
_CORE = Device(flops=120e9, bandwidth=15e9)
_UNKNOWN = "NVIDIA A100"
_LAYER_SECONDS = {"cpu": 20e-6, "gpu": 50e-6, "tpu": 5e-6}
# A CPU reads weights in long rows, and the cache in many short ones.
_CACHE_SLOWNESS = {"cpu": 2.0}
# Of one random number, for one token of the vocabulary.
_NOISE_SECONDS = {"cpu": 12e-9, "gpu": 1e-12, "tpu": 10e-12}


def estimate_costs(
    target: TargetConfig,
    draft: DraftConfig,
    dtype: DTypeLike,
    block_size: int,
    batch_size: int,
    num_slots: int,
) -> StepCosts:
    """A roofline: time to read weights and cache once a pass, plus time to multiply by them.

    The two are added, where a perfect device would overlap them: so drafting looks a little dearer
    than it may be, and a plain step never loses by it.

    Args:
        target: its shape.
        draft: its shape.
        dtype: of the weights.
        block_size: n.
        batch_size: B.
        num_slots: S.
    """
    t, layers, drafting = target, target.num_layers, draft.num_draft_layers
    device = jax.devices()[0]
    speed = _speed(device, dtype)
    overhead = _LAYER_SECONDS.get(device.platform, 0.0)
    slowness = _CACHE_SLOWNESS.get(device.platform, 1.0)
    noise = _NOISE_SECONDS.get(device.platform, _NOISE_SECONDS["gpu"])
    item = jnp.dtype(dtype).itemsize

    def milliseconds(read: int, multiplied: int, tokens: int, attending: int) -> float:
        """Of `tokens` a row through matrices, and through the caches of `attending` layers."""
        cached = 2 * attending * num_slots * t.head_dim
        traffic = item * (read + slowness * batch_size * cached * t.num_kv_heads)
        work = 2 * batch_size * tokens * (multiplied + cached * t.num_heads)
        return 1e3 * (traffic / speed.bandwidth + work / speed.flops)

    def layer_weights(tokens: int) -> tuple[int, int]:
        """Of a layer: read for so many tokens a row, and multiplied with each of them."""
        tokens *= batch_size
        return t.read_layer_weights(tokens), t.multiplied_layer_weights(tokens)

    def verify(num_drafts: int) -> float:
        read, multiplied = layer_weights(num_drafts + 1)
        heads = t.vocab_size * t.hidden_size
        return 1e3 * layers * overhead + milliseconds(
            layers * read + heads, layers * multiplied + heads, num_drafts + 1, layers
        )

    own = drafting * t.attention_weights
    heads = t.vocab_size * t.hidden_size
    heads += draft.calibration_weights(t)
    read_out = milliseconds(heads, heads, block_size - 1, 0)
    read, multiplied = layer_weights(block_size)
    one_group = milliseconds(drafting * read, drafting * multiplied, block_size, drafting)

    def parallel(num_drafts: int) -> float:
        groups = num_drafts + 1
        masks = groups * block_size
        # Weights are read for candidates and mask tokens at once; of experts, more of them.
        both, multiplied = layer_weights(groups + masks)
        read = own + drafting * (both - layer_weights(groups)[0])
        riding = milliseconds(read, drafting * multiplied, masks, drafting)
        return verify(num_drafts) + riding + read_out

    buckets = flex_buckets(block_size)
    return StepCosts(
        block_size=block_size,
        batch_size=batch_size,
        num_slots=num_slots,
        verify={count: verify(count) for count in (0, *buckets)},
        draft=one_group + read_out + 1e3 * drafting * overhead,
        parallel={count: parallel(count) for count in buckets},
        draw=1e3 * batch_size * t.vocab_size * noise,
    )


def _speed(device: jax.Device, dtype: DTypeLike) -> Device:
    """What the device does for this dtype."""
    if device.platform == "cpu":
        cores = os.cpu_count() or 1
        return Device(cores * _CORE.flops, cores * _CORE.bandwidth)
    found = find_device(device.device_kind) or DEVICES[_UNKNOWN]
    # Full float32 takes six passes on a TPU, and has no matrix units on most GPUs.
    return found if jnp.dtype(dtype).itemsize < 4 else Device(found.flops / 8, found.bandwidth)


def _read_costs(entry: Mapping[str, Any], where: str) -> StepCosts:
    block_size = fields.integer(entry, "block_size", minimum=2, where=where)
    buckets = flex_buckets(block_size)

    def by_count(part: str, counts: Sequence[int]) -> dict[int, float]:
        found = fields.mapping(entry, part) or {}
        return {v: fields.number(found, str(v), where=f"{where}.{part}") for v in counts}

    return StepCosts(
        block_size=block_size,
        batch_size=fields.integer(entry, "batch_size", where=where),
        num_slots=fields.integer(entry, "num_slots", where=where),
        verify=by_count("verify", (0, *buckets)),
        draft=fields.number(entry, "draft", where=where),
        parallel=by_count("parallel", buckets),
        draw=fields.number(entry, "draw", NEXT_TO_NOTHING, where=where),
    )

"""What is compiled for which settings."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from flexdraft_jax.decoding.costs import (
    CostModel,
    Profile,
    Variant,
    draft_buckets,
    find_profile,
    flex_variants,
)
from flexdraft_jax.decoding.requests import Request
from flexdraft_jax.decoding.state import DecodeState, place_rows
from flexdraft_jax.models.draft import Draft
from flexdraft_jax.models.flexdraft import FlexDraft, flexdraft_model
from flexdraft_jax.models.target import Target
from flexdraft_jax.parallel.mesh import row_devices
from flexdraft_jax.parallel.processes import gather_results

Variables = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class DecodeProgram:
    """What is compiled into the loop; two equal programs share one compilation per shape.

    Attributes:
        model: target and draft modules.
        block_size: n; 1 where nothing is drafted.
        pruning_strategy: how confidence becomes a verify length.
        sampling: "greedy" where every row has temperature 0; else "coupled" or "rejection".
        variants: the steps to choose from, by ascending number of drafts.
        forced_acceptance: for timing alone: each draft is accepted with this probability and is
            that sure of itself, whatever the models say, and so the tokens mean nothing.
    """

    model: FlexDraft
    block_size: int
    pruning_strategy: str
    sampling: str
    variants: tuple[Variant, ...]
    forced_acceptance: float | None = None

    def place(self, state: DecodeState) -> DecodeState:
        """The state where it lies between two steps."""
        return place_rows(state, self.mesh, self.model.config)

    def apply(self, variables: Variables, method: str, *args: Any) -> Any:
        """Calls one of the model's passes."""
        return self.model.apply(variables, *args, method=method)

    @property
    def mesh(self) -> Mesh | None:
        """That weights and rows are spread over; None is one device."""
        return self.model.mesh

    @property
    def drafts(self) -> bool:
        """Whether any step drafts."""
        return any(variant.drafts for variant in self.variants)

    @property
    def num_groups(self) -> int:
        """G, the most mask groups of a row in one pass."""
        return max((v.num_drafts + 1 for v in self.variants if v.schedule == "parallel"), default=1)

    def for_prefill(self) -> "DecodeProgram":
        """The choices that prefill depends on, so that schedules share its compilation."""
        variant = Variant("sequential" if self.drafts else "ar", 0)
        return dataclasses.replace(self, variants=(variant,))


def choose_program(
    target: Target,
    draft: Draft | None,
    schedule: str,
    block_size: int,
    pruning_strategy: str,
    sampling: str,
    profile: Profile | str | os.PathLike[str] | None,
    *,
    batch_size: int,
    num_slots: int,
    attention: str = "reference",
    mesh: Mesh | None = None,
    verify_all: bool = False,
) -> tuple[DecodeProgram, CostModel | None]:
    """What to compile for checked settings, and what flex is to choose by.

    Args:
        target: the model.
        draft: its draft, None where nothing is drafted.
        schedule: as for `generate`, like the rest up to the profile.
        block_size: n.
        pruning_strategy: "cumulative_product" or "min_confidence".
        sampling: "coupled" or "rejection".
        profile: of step costs.
        batch_size: B.
        num_slots: S at which parallel and sequential steps are compared.
        attention: as for `generate`.
        mesh: that the weights lie on, if any.
        verify_all: whether every step verifies all n - 1 drafts.
    """
    cost_model = None
    if draft is None:
        variants = fixed_variants("ar", block_size, verify_all)
        sampling = "coupled"  # Without drafts there is nothing to accept.
    elif schedule == "flex":
        find = functools.partial(
            find_profile, target.config, draft.config, target.dtype, profile, block_size, mesh
        )
        measured = gather_results(mesh, find)[0]  # All have to choose alike.
        cost_model = CostModel(target.config, draft.config, target.dtype, block_size, measured)
        variants = flex_variants(cost_model.at(batch_size // row_devices(mesh), num_slots))
    else:
        variants = fixed_variants(schedule, block_size, verify_all)
    program = DecodeProgram(
        model=flexdraft_model(target, draft, attention, mesh),
        block_size=block_size,
        pruning_strategy=pruning_strategy,
        sampling=sampling,
        variants=variants,
    )
    return program, cost_model


def groups_at(
    program: DecodeProgram, cost_model: CostModel | None, batch_size: int, num_slots: int
) -> int:
    """G that would be compiled for another batch: flex may take another step for the cheaper one.

    Args:
        program: of this batch.
        cost_model: what flex chooses by; None for a fixed schedule.
        batch_size: B of the other.
        num_slots: S at which parallel and sequential steps are compared.
    """
    if cost_model is None:
        return program.num_groups
    rows = -(-batch_size // row_devices(program.mesh))
    variants = flex_variants(cost_model.at(rows, num_slots))
    return dataclasses.replace(program, variants=variants).num_groups


def fixed_variants(schedule: str, block_size: int, verify_all: bool) -> tuple[Variant, ...]:
    """The steps to compile where the schedule is given.

    Where every step verifies all n - 1 drafts (threshold 0), one variant is enough.
    """
    counts = (block_size - 1,) if verify_all else draft_buckets(block_size)
    return tuple(Variant(schedule, num_drafts) for num_drafts in counts)


def program_for(
    program: DecodeProgram, requests: Sequence[Request], sampling: str
) -> DecodeProgram:
    """Draws tokens from the first row with a temperature on, and is greedy before."""
    if all(request.temperature == 0 for request in requests):
        return program
    return dataclasses.replace(program, sampling=sampling)

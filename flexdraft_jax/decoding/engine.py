"""Continuous batching: any number of requests through a fixed number of rows.

    engine = DecodeEngine(target, draft, batch_size=16)
    for answer in engine.run(Request(prompt, max_new_tokens=200) for prompt in prompts):
        print(answer.index, answer.tokens)

An answer does not depend on what else is decoded; but for `sampling="rejection"`, where its law
does not, and the tokens do.
"""

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

from jax.sharding import Mesh

from flexdraft_jax.decoding.batch import ALL_STEPS, Decoding, begin
from flexdraft_jax.decoding.costs import Profile
from flexdraft_jax.decoding.memory import Work, check_memory, memory_limit, plan_memory
from flexdraft_jax.decoding.program import DecodeProgram, choose_program, groups_at
from flexdraft_jax.decoding.requests import (
    Request,
    at_least_one,
    check_models,
    check_request,
    check_settings,
)
from flexdraft_jax.decoding.rounds import READING_ROWS, Answer, Rounds, Update
from flexdraft_jax.decoding.sharing import NOBODY, check_mesh
from flexdraft_jax.decoding.sizes import Sizes, slot_bucket
from flexdraft_jax.models.draft import Draft
from flexdraft_jax.models.target import Target
from flexdraft_jax.parallel.mesh import describe_mesh, row_sharding

# Tokens of a prompt to read in one call; and how many of them take as long as a call itself.
_PROMPT_CHUNKS = (32, 64, 128, 256, 512)
_CALL_COST = 32
# S at which flex's parallel and sequential steps are compared; the cheaper ones are compiled.
_USUAL_SLOTS = 512


class DecodeEngine:
    """Decodes requests of any lengths at full batch.

    Attributes:
        batch_size: B, rows decoded together.
        max_length: tokens that prompt and answer of a request may have together.
        asked_length: the same as it was asked for; None where it is what fits.
        sampling: how drafts are accepted at temperature > 0, "coupled" or "rejection".
    """

    def __init__(
        self,
        target: Target,
        draft: Draft | None,
        *,
        batch_size: int = 16,
        schedule: str = "flex",
        sampling: str = "coupled",
        block_size: int | None = None,
        pruning_strategy: str = "cumulative_product",
        profile: Profile | str | os.PathLike[str] | None = None,
        attention: str = "reference",
        mesh: Mesh | None = None,
        max_length: int | None = None,
        prompt_chunk: int | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """Checks that everything fits; compiles nothing yet.

        Args:
            target: the model.
            draft: its draft; None decodes plainly.
            batch_size: B.
            schedule: as for `generate`, like the next five.
            sampling: "coupled" or "rejection".
            block_size: n; the draft's own if None.
            pruning_strategy: "cumulative_product" or "min_confidence".
            profile: of step costs.
            attention: "reference" or "pallas".
            mesh: that the weights lie on; None takes it from them. It must be of devices of this
                process alone: each process answers requests of its own, in its own time.
            max_length: as above; if None, what the target can do, or a half, a quarter, ... of it
                where there is no memory for more.
            prompt_chunk: P, tokens of a prompt to read in one call; chosen by the first prompts if
                None.
            progress: told what is about to be compiled, and of a `max_length` that memory has made
                smaller.

        Raises:
            ValueError: an argument out of its range, or more than fits into memory.
            TypeError: an argument of the wrong kind.
        """
        check_models(target, draft)
        self.batch_size = at_least_one("batch_size", batch_size)
        mesh = check_mesh(target, draft, mesh)
        if mesh is not None:
            _check_rows(mesh, self.batch_size)
        self._chunk = None if prompt_chunk is None else at_least_one("prompt_chunk", prompt_chunk)
        self.sampling = sampling
        self._progress = progress
        self._told: set[tuple[DecodeProgram, int]] = set()
        self._target = target
        self._draft = draft = None if schedule == "ar" else draft
        block_size = check_settings(
            target, draft, schedule, block_size, pruning_strategy, sampling, attention
        )
        self._program, self._cost_model = choose_program(
            target,
            draft,
            schedule,
            block_size,
            pruning_strategy,
            sampling,
            profile,
            batch_size=self.batch_size,
            num_slots=_USUAL_SLOTS,
            attention=attention,
            mesh=mesh,
        )
        positions = target.config.max_position_embeddings
        length = positions if max_length is None else at_least_one("max_length", max_length)
        if length > positions:
            raise ValueError(
                f"max_length={length}: must be at most the target's "
                f"max_position_embeddings={positions}"
            )

        def work(rows: int) -> Work:
            return Work(
                block_size=block_size,
                num_groups=groups_at(self._program, self._cost_model, rows, _USUAL_SLOTS),
                chunk=self._chunk or _PROMPT_CHUNKS[-1],
                draws=True,  # Nobody knows yet.
                reading_rows=min(READING_ROWS, rows),
            )

        here = work(self.batch_size)
        plan = functools.partial(plan_memory, target, draft, here, self.batch_size)
        limit = memory_limit(target)
        if max_length is None and limit is not None:
            while length > 128 and plan(length + block_size).total > limit:
                length //= 2
        check_memory(target, draft, work, self.batch_size, length + block_size)
        self.max_length = length
        self.asked_length = max_length
        self._limit_note = ""
        if max_length is None and length < positions:
            self._limit_note = f", as memory holds no more for {self.batch_size} rows"
            if progress is not None:
                progress(f"prompt and answer may have {length} tokens{self._limit_note}")

    def stream(self, requests: Iterable[Request], *, steps_per_update: int = 8) -> Iterator[Update]:
        """Yields what is new of every request that is being decoded, after every few steps.

        Args:
            requests: as for `run`.
            steps_per_update: steps between two updates; fewer where a request ends.

        Raises:
            ValueError: `steps_per_update` under 1, at the call; or as `run`.
            TypeError: the same.
        """
        return self._updates(requests, at_least_one("steps_per_update", steps_per_update))

    def run(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Yields answers as they are finished, which need not be the order of the requests.

        Args:
            requests: any number, even without an end; each is taken when a row is free for it, and
                decoding waits until it is there.

        Raises:
            ValueError: a request that `check` refuses, when it is taken. Answers that aren't
                finished by then are lost, so check first what may be wrong.
            TypeError: the same.
        """
        for update in self._updates(requests, ALL_STEPS):
            if update.answer is not None:
                yield update.answer

    def check(self, request: Request) -> Request:
        """The request in its usual types, if `stream` and `run` can answer it.

        Raises:
            ValueError: it can't be answered; what is wrong is named.
            TypeError: it is no request, or holds something of the wrong kind.
        """
        request = check_request(self._target.config, request)
        length = len(request.prompt) + request.max_new_tokens
        if length > self.max_length:
            raise ValueError(
                f"the prompt has {len(request.prompt)} tokens and "
                f"max_new_tokens={request.max_new_tokens}: together they must be at most "
                f"max_length={self.max_length}{self._limit_note}"
            )
        return request

    def _updates(self, requests: Iterable[Request], steps_per_update: int) -> Iterator[Update]:
        """Goes round until no request is left."""
        rounds = Rounds(self.batch_size, self._numbered(requests), self._begin)
        while rounds.admit():
            rounds.read()
            rounds.decode(steps_per_update)
            yield from rounds.collect()

    def _numbered(self, requests: Iterable[Request]) -> Iterator[tuple[int, Request]]:
        """Each request with its number, checked when it is taken."""
        for index, request in enumerate(requests):
            try:
                checked = self.check(request)
            except (TypeError, ValueError) as error:
                raise type(error)(f"request {index}: {error}") from error
            yield index, checked

    def _begin(self, requests: Sequence[Request]) -> Decoding:
        """A batch with these requests in its rows, nothing read yet, and its programs compiled."""
        lengths = [len(request.prompt) for request in requests if request is not NOBODY]
        most = self.max_length + self._program.block_size
        sizes = Sizes(
            prompt=self._chunk or _choose_chunk(lengths),
            slots=slot_bucket(max(lengths) + self._program.block_size, most),
            max_slots=most,
        )
        decoding = begin(
            self._target,
            self._draft,
            self._program,
            requests,
            sizes,
            self._cost_model,
            refilled=True,
        )
        decoding.progress, decoding.told = self._progress, self._told
        whole = max(len(request.prompt) + request.max_new_tokens for request in requests)
        decoding.compile_ahead(
            slot_bucket(whole + self._program.block_size, most),
            sorted({1, min(READING_ROWS, self.batch_size)}),
        )
        return decoding


def _choose_chunk(lengths: Sequence[int]) -> int:
    """P that reads prompts of these lengths in the least time, padding and calls counted."""
    return min(
        _PROMPT_CHUNKS,
        key=lambda chunk: sum(-(-length // chunk) * (chunk + _CALL_COST) for length in lengths),
    )


def _check_rows(mesh: Mesh, batch_size: int) -> None:
    """Raises ValueError where an engine can't work on the mesh."""
    if mesh.is_multi_process:
        raise ValueError(
            f"mesh={describe_mesh(mesh)}: lies on several processes, which would have to wait for "
            "each other at every request; give each an engine of its own, with weights on "
            "make_mesh(..., devices=jax.local_devices())"
        )
    row_sharding(mesh, batch_size)

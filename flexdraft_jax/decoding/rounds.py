"""The rounds of an engine: which request is in which row, and what was seen of it.

A round has three parts: free rows take the next requests; every prompt that isn't read yet is read
on by one chunk; the compiled loop decodes until a row ends.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import jax

from flexdraft_jax.decoding.batch import Decoding
from flexdraft_jax.decoding.requests import Request
from flexdraft_jax.decoding.sharing import NOBODY
from flexdraft_jax.decoding.sizes import slot_bucket

# Rows that read their prompts in one call, where several do; else one row does.
READING_ROWS = 4
# Steps between two chunks of a long prompt, so that other rows go on meanwhile.
_STEPS_BETWEEN_CHUNKS = 4
# Tokens that a row can go on for before slots that were given up would be asked for again.
_SPARE_SLOTS = 32


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a request was answered.

    Attributes:
        index: of the request, counted from 0 in the order they came.
        tokens: new token ids, up to the stop token (included) or the budget.
        acceptance_lengths: a + 1 of each step, as in `GenerateOutput`.
        verify_lengths: v of each step.
        batch_fills: how many rows decoded in each step.
        finish_reason: "stop" or "length"; "error" where the target's logits were NaN behind these
            tokens, so that there is no next one. Other requests do not notice.
        first_token_seconds: from when the request got a row until its prompt was read, which gives
            the first token. `stream` gives it out a few steps later, `run` with the whole answer.
        seconds: until the answer was seen to have ended.
    """

    index: int
    tokens: list[int]
    acceptance_lengths: list[int]
    verify_lengths: list[int]
    batch_fills: list[int]
    finish_reason: str
    first_token_seconds: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Update:
    """What a request was answered since its last update.

    Attributes:
        index: of the request.
        tokens: the new ones.
        answer: all of it, once it is finished.
    """

    index: int
    tokens: list[int]
    answer: Answer | None


@dataclasses.dataclass
class _Row:
    """A request in its row.

    Attributes:
        index: of the request.
        request: itself.
        taken: when it got the row.
        num_read: tokens of its prompt that are read; none where no answer is wanted.
        num_given: tokens of its answer that were given out.
        batch_fills: of its steps.
        first_token: when its first token was there.
    """

    index: int
    request: Request
    taken: float
    num_read: int = 0
    num_given: int = 0
    batch_fills: list[int] = dataclasses.field(default_factory=list)
    first_token: float | None = None

    @property
    def reading(self) -> bool:
        """Whether some of the prompt is still to be read."""
        return self.request.max_new_tokens > 0 and self.num_read < len(self.request.prompt)


class Rounds:
    """Which request is in which row, and what was seen of it."""

    def __init__(
        self,
        batch_size: int,
        requests: Iterator[tuple[int, Request]],
        begin: Callable[[Sequence[Request]], Decoding],
    ) -> None:
        """All rows are free.

        Args:
            batch_size: B.
            requests: numbered.
            begin: called with the first requests of all rows.
        """
        self._rows: list[_Row | None] = [None] * batch_size
        self._requests = requests
        self._begin = begin
        self._decoding: Decoding | None = None
        self._num_running = 0

    def admit(self) -> bool:
        """Gives free rows the next requests; False where nothing is left to do."""
        taken: dict[int, tuple[int, Request]] = {}
        for place, row in enumerate(self._rows):
            if row is None and (numbered := next(self._requests, None)) is not None:
                taken[place] = numbered
        if taken:
            requests = [NOBODY if row is None else row.request for row in self._rows]
            for place, (_, request) in taken.items():
                requests[place] = request
            if self._decoding is None:
                self._decoding = self._begin(requests)
            else:
                self._fit(self._decoding, requests)
                self._decoding.admit(list(taken), requests)
        for place, numbered in taken.items():
            self._rows[place] = _Row(*numbered, taken=time.perf_counter())
        return any(self._rows)

    def read(self) -> None:
        """Reads one chunk of every prompt that isn't read yet."""
        assert self._decoding is not None
        reading = [(place, row) for place, row in enumerate(self._rows) if row and row.reading]
        many = min(READING_ROWS, len(self._rows))
        while reading:
            count = many if len(reading) > many // 2 else 1
            group, reading = reading[:count], reading[count:]
            places, last = [len(self._rows)] * count, [False] * count
            parts: list[tuple[int, ...]] = [()] * count
            for i, (place, row) in enumerate(group):
                end = row.num_read + self._decoding.sizes.prompt
                places[i], parts[i] = place, row.request.prompt[row.num_read : end]
                row.num_read += len(parts[i])
                last[i] = not row.reading
            self._decoding.read(places, parts, last)
            if any(last):
                jax.block_until_ready(self._decoding.state.num_emitted)
                now = time.perf_counter()
                for (_, row), done in zip(group, last, strict=False):
                    row.first_token = now if done else None

    def decode(self, max_steps: int) -> None:
        """Decodes until a row ends, `max_steps` at most."""
        assert self._decoding is not None
        waiting = sum(row is not None for row in self._rows)
        self._num_running = self._decoding.num_running
        if self._num_running < waiting:  # Some still read, or have ended with their first token.
            max_steps = min(max_steps, _STEPS_BETWEEN_CHUNKS)
        if self._num_running:
            self._decoding.advance(max_steps, min_active=self._num_running)

    def collect(self) -> Iterator[Update]:
        """What is new in each row; frees those that ended."""
        assert self._decoding is not None
        out, now = self._decoding.rows(), time.perf_counter()
        for place, row in enumerate(self._rows):
            if row is None or row.reading:
                continue
            tokens = out.tokens[place][row.num_given :]
            row.num_given += len(tokens)
            new_steps = len(out.acceptance_lengths[place]) - len(row.batch_fills)
            row.batch_fills += [self._num_running] * new_steps
            answer = None
            if out.finish_reasons[place] != "running":
                self._rows[place] = None
                answer = Answer(
                    index=row.index,
                    tokens=out.tokens[place],
                    acceptance_lengths=out.acceptance_lengths[place],
                    verify_lengths=out.verify_lengths[place],
                    batch_fills=row.batch_fills,
                    finish_reason=out.finish_reasons[place],
                    first_token_seconds=(row.first_token or now) - row.taken,
                    seconds=now - row.taken,
                )
            if tokens or answer:
                yield Update(row.index, tokens, answer)

    def _fit(self, decoding: Decoding, requests: Sequence[Request]) -> None:
        """Makes room for new prompts, and gives up room that no row needs any more.

        A step pays for every slot; to give some of them up costs less than a step.
        """
        given = [0 if row is None else row.num_given for row in self._rows]
        most = max(len(r.prompt) + count for r, count in zip(requests, given, strict=True))
        most += decoding.program.block_size  # A step may write as much.
        needed, enough = (
            slot_bucket(size, decoding.sizes.max_slots) for size in (most, most + _SPARE_SLOTS)
        )
        if needed > decoding.num_slots or enough < decoding.num_slots:
            decoding.resize(enough)

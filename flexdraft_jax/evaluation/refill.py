"""What it is worth to refill rows: requests of mixed lengths, beside fixed batches."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from flexdraft_jax.data.chat import encode_turn
from flexdraft_jax.data.corpus import DOMAINS
from flexdraft_jax.data.held_out import default_prompts
from flexdraft_jax.decoding.batch import start
from flexdraft_jax.decoding.engine import DecodeEngine
from flexdraft_jax.decoding.requests import Request, block_size_of
from flexdraft_jax.decoding.sizes import sizes_for
from flexdraft_jax.evaluation.tables import Table
from flexdraft_jax.evaluation.timing import (
    Progress,
    Spread,
    interleave,
    ratios,
    seconds,
    silent,
)
from flexdraft_jax.models.draft import Draft
from flexdraft_jax.models.target import Target

# As many batches of requests are decoded once before, for compilation.
_WARM_UP_BATCHES = 4


@dataclasses.dataclass(frozen=True)
class RefillReport:
    """Both ways to decode the same requests, compilation excluded.

    Attributes:
        num_requests: how many there were.
        num_tokens: new ones, all requests together.
        batch_size: B, of both.
        schedule: of both.
        fixed: tokens per second where each batch waits for its longest row.
        refilled: tokens per second of the engine.
        speedup: of the engine.
        num_equal: requests answered token for token alike.
    """

    num_requests: int
    num_tokens: int
    batch_size: int
    schedule: str
    fixed: Spread
    refilled: Spread
    speedup: Spread
    num_equal: int

    def to_table(self) -> Table:
        """For people."""
        rows = [
            ("fixed batches", f"{self.fixed:.0f}", "1"),
            ("refilled rows", f"{self.refilled:.0f}", f"{self.speedup:.2f}"),
        ]
        return Table(
            f"{self.num_requests:,} requests through {self.batch_size} rows, {self.schedule}",
            ("method", "tokens/s", "speed-up"),
            rows,
            f"{self.num_tokens:,} new tokens; {self.num_equal:,} of {self.num_requests:,} answers "
            "are equal, token for token. Compilation excluded. Median (lowest-highest) of "
            "interleaved repeats.",
        )


def mixed_requests(
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    shortest: int = 4,
    longest: int = 400,
    seed: int = 0,
) -> list[Request]:
    """Held-out prompts of both domains in turn, each with its own number of new tokens.

    Args:
        tokenizer: of the target.
        count: how many.
        shortest: new tokens of an answer, at least.
        longest: new tokens of an answer, at most. No token stops it before.
        seed: of the lengths.
    """
    rng = np.random.default_rng(seed)
    domains = [default_prompts(domain) for domain in DOMAINS]
    texts = [prompts[i % len(prompts)].prompt for i in range(count) for prompts in domains][:count]
    budgets = rng.integers(shortest, longest, size=count, endpoint=True).tolist()
    return [
        Request(tuple(encode_turn(tokenizer, text, None).tokens), budget)
        for text, budget in zip(texts, budgets, strict=True)
    ]


def measure_refill(
    target: Target,
    draft: Draft | None,
    requests: Sequence[Request],
    *,
    batch_size: int = 16,
    schedule: str = "flex",
    repeats: int = 3,
    progress: Progress = silent,
) -> RefillReport:
    """Decodes the requests both ways, in turn.

    Args:
        target: the model.
        draft: its draft; None decodes plainly.
        requests: at least one.
        batch_size: B.
        schedule: of both.
        repeats: of both.
        progress: told what comes.

    Raises:
        ValueError: a bad argument of `DecodeEngine`, or `repeats` under 1.
    """
    sizes = sizes_for(requests, block_size_of(draft, schedule, None))
    engine = DecodeEngine(target, draft, batch_size=batch_size, schedule=schedule)

    def fixed(requests: Sequence[Request]) -> list[list[int]]:
        answers = []
        for first in range(0, len(requests), batch_size):
            batch = requests[first : first + batch_size]
            # Rows that only fill the last batch emit nothing.
            filler = [dataclasses.replace(batch[0], max_new_tokens=0)] * (batch_size - len(batch))
            decoding = start(target, draft, [*batch, *filler], schedule, sizes=sizes)
            decoding.advance()
            answers += decoding.output().tokens[: len(batch)]
        return answers

    def refilled(requests: Sequence[Request]) -> list[list[int]]:
        answers = {answer.index: answer.tokens for answer in engine.run(requests)}
        return [answers[index] for index in range(len(requests))]

    methods: dict[str, Callable[[Sequence[Request]], list[list[int]]]] = {
        "fixed": fixed,
        "refilled": refilled,
    }
    answers: dict[str, list[list[int]]] = {}

    def timer(name: str) -> Callable[[], float]:
        def decode() -> None:
            answers[name] = methods[name](requests)

        return lambda: seconds(decode)

    for name, decode in methods.items():
        progress(f"{name}: compiling and warming up")
        decode(requests[: _WARM_UP_BATCHES * batch_size])
    progress(f"{len(requests)} requests, {repeats} repeats")
    times = interleave({name: timer(name) for name in methods}, repeats)
    num_tokens = sum(map(len, answers["fixed"]))
    pairs = zip(answers["fixed"], answers["refilled"], strict=True)
    return RefillReport(
        num_requests=len(requests),
        num_tokens=num_tokens,
        batch_size=batch_size,
        schedule=schedule,
        fixed=Spread.of([num_tokens / t for t in times["fixed"]]),
        refilled=Spread.of([num_tokens / t for t in times["refilled"]]),
        speedup=ratios(times["fixed"], times["refilled"]),
        num_equal=sum(a == b for a, b in pairs),
    )

"""The corpus of the embedded default: word problems and library source, as chat turns."""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from itertools import count, cycle, islice
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from flexdraft_jax.data.builder import TurnSource
from flexdraft_jax.data.chat import EncodedTurn, encode_turn
from flexdraft_jax.data.code import code_tasks
from flexdraft_jax.data.drills import drill
from flexdraft_jax.data.word_problems import HELD_OUT_SEED, TRAIN_SEED, word_problem

Domain = Literal["word_problems", "code"]
DOMAINS: tuple[Domain, ...] = ("word_problems", "code")

# Seeds of the corpus take disjoint stretches of the one training stream of word problems.
_PROBLEMS_PER_SEED = 2**32
# Held-out problems for the loss; those before are for prompts to decode.
_FIRST_HELD_OUT_PROBLEM = 1_000_000


class Turn(NamedTuple):
    """A prompt and its response, as text."""

    prompt: str
    response: str


def check_domain(domain: str) -> None:
    """Raises ValueError if `domain` is unknown."""
    if domain not in DOMAINS:
        raise ValueError(f"domain must be one of {DOMAINS}, got {domain!r}")


def parse_domains(names: Sequence[str]) -> tuple[Domain, ...]:
    """Returns names as domains.

    Raises:
      ValueError: if there is none, or one is unknown.
    """
    if not names:
        raise ValueError(f"domains must name at least one of {DOMAINS}, got none")
    for name in names:
        check_domain(name)
    return tuple(domain for name in names for domain in DOMAINS if domain == name)


def train_turns(domain: Domain, seed: int) -> Iterator[Turn]:
    """Yields training turns of one domain without end.

    Word problems are always new ones, and other ones for every seed. Code is finite: each pass
    goes through all of it in another order.
    """
    check_domain(domain)
    if domain == "word_problems":
        for index in count(seed * _PROBLEMS_PER_SEED):
            problem = word_problem(TRAIN_SEED, index)
            yield Turn(problem.question, problem.solution)
    tasks = code_tasks("train")
    for epoch in count():
        order = list(range(len(tasks)))
        random.Random(f"{seed}:code:{epoch}").shuffle(order)
        for index in order:
            yield Turn(tasks[index].prompt, tasks[index].response)


def conversation_lines(domains: Sequence[Domain], count: int, seed: int) -> Iterator[str]:
    """Yields training turns as `count` lines of JSONL, the domains taking turns.

    Raises:
      ValueError: if `count` or `seed` is below 0.
    """
    for name, value in (("count", count), ("seed", seed)):
        if value < 0:
            raise ValueError(f"{name} must be >= 0, got {value}")
    streams = {domain: train_turns(domain, seed) for domain in domains}
    for domain in islice(cycle(domains), count):
        turn = next(streams[domain])
        yield json.dumps({**turn._asdict(), "domain": domain}) + "\n"


def held_out_turns(domain: Domain) -> Iterator[Turn]:
    """Yields held-out turns of one domain; code ends after a few hundred, word problems never."""
    check_domain(domain)
    if domain == "code":
        yield from (Turn(task.prompt, task.response) for task in code_tasks("held_out"))
        return
    for index in count(_FIRST_HELD_OUT_PROBLEM):
        problem = word_problem(HELD_OUT_SEED, index)
        yield Turn(problem.question, problem.solution)


def mixed_turns(seed: int, word_problem_share: float, drill_share: float = 0.0) -> Iterator[Turn]:
    """Yields training turns of both domains, and arithmetic drills.

    Args:
      seed: of the texts.
      word_problem_share: share of word problems in the bytes of both domains.
      drill_share: share of drills in all bytes.

    Raises:
      ValueError: if a share is outside 0..1.
    """
    _check_share("word_problem_share", word_problem_share)
    _check_share("drill_share", drill_share)
    problems, code = train_turns("word_problems", seed), train_turns("code", seed)
    drills = (Turn(*drill(seed, index)) for index in count())
    problem_bytes = domain_bytes = drill_bytes = 0
    while True:
        if drill_bytes < drill_share * (domain_bytes + drill_bytes):
            turn = next(drills)
            drill_bytes += len(turn.prompt) + len(turn.response)
        else:
            due = problem_bytes < word_problem_share * domain_bytes or word_problem_share == 1
            turn = next(problems) if due else next(code)
            size = len(turn.prompt) + len(turn.response)
            problem_bytes += size if due else 0
            domain_bytes += size
        yield turn


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{name} must be in 0..1, got {share}")


def corpus_source(
    tokenizer: PreTrainedTokenizerBase,
    *,
    train_tokens: int,
    held_out_tokens: int,
    word_problem_share: float = 0.5,
    drill_share: float = 0.0,
    seed: int = 0,
) -> TurnSource:
    """Returns the corpus for training a target.

    Its splits are "train" (both domains mixed), "held_out_word_problems" and "held_out_code".

    Args:
      tokenizer: with a chat template.
      train_tokens: about how many tokens the training split has.
      held_out_tokens: about how many tokens each held-out split has at most.
      word_problem_share: share of word problems in the bytes of both domains.
      drill_share: share of arithmetic drills in all bytes of the training text.
      seed: other seeds give other word problems and another order of code.

    Raises:
      ValueError: if a number is out of its range.
    """
    for name, value in (("train_tokens", train_tokens), ("held_out_tokens", held_out_tokens)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    _check_share("word_problem_share", word_problem_share)
    _check_share("drill_share", drill_share)

    # Everything that the text depends on: the code of this Python, the generator, the tokenizer.
    probe = encode_turn(tokenizer, "What is 2 + 2?\n\té", "4").tokens
    problems = [word_problem(TRAIN_SEED, index) for index in range(200)]
    settings = (train_tokens, held_out_tokens, word_problem_share, drill_share, seed)
    digest = hashlib.sha256(repr((settings, probe, len(tokenizer), problems)).encode())
    for task in code_tasks("train") + code_tasks("held_out"):
        digest.update(f"{task.prompt}\0{task.response}\0".encode())
    return TurnSource(
        name="corpus",
        fingerprint=digest.hexdigest()[:16],
        splits={
            "train": lambda: _encode(
                tokenizer, mixed_turns(seed, word_problem_share, drill_share), train_tokens
            ),
            "held_out_word_problems": lambda: _encode(
                tokenizer, held_out_turns("word_problems"), held_out_tokens
            ),
            "held_out_code": lambda: _encode(tokenizer, held_out_turns("code"), held_out_tokens),
        },
    )


def _encode(
    tokenizer: PreTrainedTokenizerBase, turns: Iterator[Turn], max_tokens: int
) -> Iterator[EncodedTurn]:
    tokens = 0
    for turn in turns:
        encoded = encode_turn(tokenizer, turn.prompt, turn.response)
        yield encoded
        tokens += len(encoded.tokens)
        if tokens >= max_tokens:
            return

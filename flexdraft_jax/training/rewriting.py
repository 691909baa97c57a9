"""Conversations whose responses the target writes anew, greedily, in batches.

Lines wait in one queue for each bucket of prompt lengths, and a full queue is decoded. A row's
array sizes then depend on its own prompt alone, and so few programs are compiled.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from flexdraft_jax.data.chat import EncodedTurn, Message, encode_prompt
from flexdraft_jax.data.conversations import Document, PlainText, parse_line, reject
from flexdraft_jax.data.fingerprints import tokenizer_fingerprint
from flexdraft_jax.decoding.batch import start
from flexdraft_jax.decoding.requests import (
    at_least_one,
    block_size_of,
    check_requests,
    check_settings,
)
from flexdraft_jax.decoding.sizes import bucket, sizes_of
from flexdraft_jax.evaluation.measure import decode_text
from flexdraft_jax.models.draft import Draft
from flexdraft_jax.models.target import Target

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Writer:
    """Who writes the responses, and how.

    Attributes:
        target: the model.
        draft: its draft, to be faster; None decodes plainly. The responses are the same.
        tokenizer: of the target, with a chat template.
        max_new_tokens: longest response; one that reaches it ends without an end token.
        batch_size: rows decoded together.
        template_kwargs: variables of the chat template.
        schedule: as for `generate`.
    """

    target: Target
    draft: Draft | None
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int = 512
    batch_size: int = 64
    template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    schedule: str = "flex"

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size"):
            at_least_one(name, getattr(self, name))
        check_settings(self.target, self.draft, self.schedule, None, "cumulative_product")


@dataclasses.dataclass(frozen=True)
class _Response:
    """What the target answered.

    Attributes:
        tokens: ids, the end token included.
        cut: whether it reached the largest length instead.
    """

    tokens: list[int]
    cut: bool


# Yields prompts, is sent responses, and returns the finished line.
_Rewriting = Generator[list[int], _Response, Record]


@dataclasses.dataclass(frozen=True)
class _Waiting:
    """A line whose next response is due.

    Attributes:
        line: its number.
        rewriting: what goes on once there is a response.
        prompt: ids to respond to.
    """

    line: int
    rewriting: _Rewriting
    prompt: list[int]


def answer_lines(lines: Iterable[tuple[int, bytes]], writer: Writer) -> Iterator[list[Record]]:
    """Answers numbered lines of JSONL.

    Yields:
        Lines that were finished together, each as a record: its number `line`, and either
        `rejected` (reason and start) or `documents` (lines to write), `responses`, `cut` and
        `response_tokens` (counts).
    """
    fingerprint = tokenizer_fingerprint(writer.tokenizer)
    queues: dict[int, list[_Waiting]] = defaultdict(list)
    for number, line in lines:
        try:
            document = parse_line(line)
            rewriting = _rewrite(document, writer, fingerprint)
            waiting = _Waiting(number, rewriting, next(rewriting))
        except ValueError as error:
            yield [{"line": number, "rejected": dataclasses.asdict(reject(line, str(error)))}]
            continue
        size = bucket(len(waiting.prompt))
        queues[size].append(waiting)
        while len(queues[size]) >= writer.batch_size:
            yield _answer_batch(writer, queues, size)
    while any(queues.values()):
        yield _answer_batch(writer, queues, max(queues, key=lambda size: len(queues[size])))


def _answer_batch(writer: Writer, queues: dict[int, list[_Waiting]], size: int) -> list[Record]:
    """Decodes the longest waiting of one queue; lines with more turns join a queue again."""
    batch, queues[size] = queues[size][: writer.batch_size], queues[size][writer.batch_size :]
    finished = []
    responses = _decode(writer, [waiting.prompt for waiting in batch], size)
    for waiting, response in zip(batch, responses, strict=True):
        try:
            prompt = waiting.rewriting.send(response)
        except StopIteration as stop:
            finished.append({"line": waiting.line, **stop.value})
            continue
        queues[bucket(len(prompt))].append(dataclasses.replace(waiting, prompt=prompt))
    return finished


def _decode(writer: Writer, prompts: Sequence[list[int]], size: int) -> list[_Response]:
    """Responds to prompts of one bucket; a smaller batch is filled up to the same program."""
    target, schedule = writer.target, writer.schedule
    limit = target.config.max_position_embeddings
    budgets = [min(writer.max_new_tokens, limit - len(prompt)) for prompt in prompts]
    requests = check_requests(target.config, prompts, budgets, 0.0, target.eos_token_ids)
    filler = dataclasses.replace(requests[0], max_new_tokens=0)
    requests += [filler] * (writer.batch_size - len(requests))
    sizes = sizes_of(
        longest=size,
        whole=size + writer.max_new_tokens,
        batch_size=writer.batch_size,
        block_size=block_size_of(writer.draft, schedule, None),
    )
    decoding = start(target, writer.draft, requests, schedule, sizes=sizes)
    decoding.advance(writer.max_new_tokens)
    out = decoding.output()
    return [
        _Response(out.tokens[row], out.finish_reasons[row] == "length")
        for row in range(len(prompts))
    ]


def _rewrite(document: Document, writer: Writer, fingerprint: str) -> _Rewriting:
    """Goes through the turns of one line.

    Every response stands behind the tokens that a server would send for it. As in
    :func:`flexdraft_jax.data.chat.encode_conversation`, a new document begins where the template
    does not go on from what was there.
    """
    if isinstance(document, PlainText) or not document.messages:
        raise ValueError("no messages: there is no turn to answer")
    history: list[Message] = []
    documents: list[tuple[EncodedTurn, list[Message]]] = []
    tokens: list[int] = []
    mask: list[bool] = []
    cut = responses = response_tokens = 0
    for message in document.messages:
        if message.role == "assistant":
            continue
        history.append(message)
        if message.role == "system":
            continue
        try:
            prompt = _prompt(history, writer)
        except ValueError:
            if not responses:
                raise
            break  # The turns before are worth keeping.
        response = yield prompt
        if prompt[: len(tokens)] != tokens:
            documents.append((EncodedTurn(tokens, mask), history[:-1]))
            mask = []
        mask = mask + [False] * (len(prompt) - len(mask)) + [True] * len(response.tokens)
        tokens = prompt + response.tokens
        text = decode_text(writer.tokenizer, response.tokens)
        history.append(Message("assistant", text))
        cut += response.cut
        responses += 1
        response_tokens += len(response.tokens)
    answered = max(i for i, message in enumerate(history) if message.role == "assistant") + 1
    documents.append((EncodedTurn(tokens, mask), history[:answered]))
    return {
        "documents": [
            {
                "messages": [vars(message) for message in messages],
                "tokens": turn.tokens,
                "response_mask": turn.response_mask,
                "tokenizer": fingerprint,
                "domain": document.domain,
            }
            for turn, messages in documents
        ],
        "responses": responses,
        "cut": cut,
        "response_tokens": response_tokens,
    }


def _prompt(history: Sequence[Message], writer: Writer) -> list[int]:
    prompt = encode_prompt(writer.tokenizer, history, writer.template_kwargs)
    limit = writer.target.config.max_position_embeddings
    if len(prompt) >= limit:
        raise ValueError(f"prompt too long: {len(prompt)} tokens, the target has {limit} positions")
    return prompt

import re
from itertools import islice

import numpy as np
import pytest

from flexdraft_jax.data.builder import prepare_rows
from flexdraft_jax.data.chat import build_byte_tokenizer
from flexdraft_jax.data.code import code_tasks
from flexdraft_jax.data.conversations import Conversation, parse_line
from flexdraft_jax.data.corpus import (
    conversation_lines,
    corpus_source,
    held_out_turns,
    mixed_turns,
    parse_domains,
    train_turns,
)
from flexdraft_jax.data.drills import drill
from flexdraft_jax.data.word_problems import parse_answer, word_problem

_TOKENIZER = build_byte_tokenizer()


def _is_problem(turn):
    return parse_answer(turn.response) is not None


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_word_problems_make_the_given_share_of_bytes(share):
    sizes = {True: 0, False: 0}
    for turn in islice(mixed_turns(0, share), 2000):
        sizes[_is_problem(turn)] += len(turn.prompt) + len(turn.response)
    assert sizes[True] / (sizes[True] + sizes[False]) == pytest.approx(share, abs=0.005)


def test_each_pass_over_code_has_every_task_once_in_another_order():
    tasks = code_tasks("train")
    turns = list(islice(train_turns("code", 0), 2 * len(tasks)))
    first, second = turns[: len(tasks)], turns[len(tasks) :]
    assert sorted(first) == sorted(second) == sorted((task.prompt, task.response) for task in tasks)
    assert first != second


def test_seeds_give_other_problems_and_seed_0_begins_the_training_stream():
    zero = [turn.prompt for turn in islice(train_turns("word_problems", 0), 50)]
    one = [turn.prompt for turn in islice(train_turns("word_problems", 1), 50)]
    assert zero == [word_problem(0, index).question for index in range(50)]
    assert not set(zero) & set(one)


def test_held_out_turns_are_not_in_training():
    held_out = set(held_out_turns("code"))
    assert len(held_out) == len(code_tasks("held_out"))
    seen = set(islice(train_turns("code", 0), len(code_tasks("train"))))
    assert not held_out & seen
    problems = set(islice(held_out_turns("word_problems"), 500))
    assert not problems & set(islice(train_turns("word_problems", 0), 2000))


def test_corpus_becomes_rows(tmp_path):
    source = corpus_source(_TOKENIZER, train_tokens=20_000, held_out_tokens=3000)
    rows = prepare_rows(source, length=1024, data_dir=tmp_path)
    assert rows.keys() == {"train", "held_out_word_problems", "held_out_code"}
    train = np.stack([rows["train"][i]["segment_ids"] for i in range(len(rows["train"]))])
    assert 0.9 * 20_000 < np.count_nonzero(train) < 1.1 * 20_000
    first = rows["held_out_word_problems"][0]
    end = np.count_nonzero(first["segment_ids"] == 1)
    text = _TOKENIZER.decode(first["tokens"][:end][first["response_mask"][:end]])
    assert text.endswith("<|end|>") and parse_answer(text) is not None


def test_fingerprint_follows_the_settings():
    settings = {"train_tokens": 1000, "held_out_tokens": 100, "word_problem_share": 0.5, "seed": 0}
    fingerprints = {corpus_source(_TOKENIZER, **settings).fingerprint}
    assert fingerprints == {corpus_source(build_byte_tokenizer(), **settings).fingerprint}
    for name, value in (("train_tokens", 2000), ("word_problem_share", 0.4), ("seed", 1)):
        fingerprints.add(corpus_source(_TOKENIZER, **(settings | {name: value})).fingerprint)
    assert len(fingerprints) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_tokens": 0}, "train_tokens"),
        ({"held_out_tokens": 0}, "held_out_tokens"),
        ({"word_problem_share": 1.5}, "word_problem_share"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    settings = {"train_tokens": 1000, "held_out_tokens": 100} | changes
    with pytest.raises(ValueError, match=message):
        corpus_source(_TOKENIZER, **settings)


def test_unknown_domain_is_refused():
    with pytest.raises(ValueError, match="'poems'"):
        next(train_turns("poems", 0))


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_drills_take_their_share(share: float) -> None:
    turns = list(islice(mixed_turns(0, 0.5, share), 500))
    drills = [turn for turn in turns if turn.prompt.startswith("Work out ")]
    sizes = [sum(len(t.prompt) + len(t.response) for t in group) for group in (drills, turns)]
    assert sizes[0] / sizes[1] == pytest.approx(share, abs=0.02)


def test_drills_are_true_and_answer_what_is_asked() -> None:
    for index in range(200):
        prompt, response = drill(3, index)
        assert drill(3, index) == (prompt, response)
        calculations = re.findall(r"(\d+) ([-+x/]) (\d+) = (\d+)", response)
        for a, operator, b, result in calculations:
            python = {"x": "*", "/": "//"}.get(operator, operator)
            assert eval(f"{a} {python} {b}") == int(result)
        asked = re.findall(r"\d+ [-+x/] \d+", prompt)
        written = [f"{a} {operator} {b}" for a, operator, b, _ in calculations]
        assert len(asked) == 6 and set(asked) <= set(written)


def test_conversation_lines_are_training_turns_of_the_domains_in_turn():
    lines = list(conversation_lines(("word_problems", "code"), 5, seed=2))
    documents = [parse_line(line.encode()) for line in lines]
    assert all(isinstance(document, Conversation) for document in documents)
    assert [document.domain for document in documents] == ["word_problems", "code"] * 2 + [
        "word_problems"
    ]
    for domain in ("word_problems", "code"):
        found = [
            tuple(message.content for message in document.messages)
            for document in documents
            if document.domain == domain
        ]
        assert found == list(islice(train_turns(domain, 2), len(found)))
    for count, seed in ((-1, 0), (0, -1)):
        with pytest.raises(ValueError, match="must be >= 0, got -1"):
            next(conversation_lines(("code",), count, seed))


def test_domains_are_parsed():
    assert parse_domains(["code", "word_problems"]) == ("code", "word_problems")
    for names in ([], ["cod"]):
        with pytest.raises(ValueError, match="domain"):
            parse_domains(names)

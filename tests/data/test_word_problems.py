import re

import pytest

from flexdraft_jax.data.word_problem_shapes import SHAPES
from flexdraft_jax.data.word_problems import (
    HELD_OUT_SEED,
    TRAIN_SEED,
    occurs_in_training,
    parse_answer,
    train_questions,
    word_problem,
)

_STATEMENT = re.compile(r"(\d+) ([-+x/]) (\d+) = (\d+)")
_PROBLEMS = [word_problem(TRAIN_SEED, index) for index in range(3000)]


def test_every_calculation_is_true_and_within_range():
    for problem in _PROBLEMS:
        statements = _STATEMENT.findall(problem.solution)
        # Nothing that looks like a calculation escapes the check.
        assert len(statements) == problem.solution.count(" = ") >= problem.num_steps
        for left, operator, right, result in statements:
            a, b, c = int(left), int(right), int(result)
            expected = {"+": a + b, "-": a - b, "x": a * b, "/": a / b if b else None}[operator]
            assert c == expected, problem.solution
            if operator in "+-":
                assert 0 <= min(a, b, c) and max(a, b, c) <= 100
            elif operator == "x":
                assert max(a, b) <= 12
            else:
                assert max(b, c) <= 12


def test_answer_closes_the_solution_and_parses_back():
    for problem in _PROBLEMS:
        assert parse_answer(problem.solution) == problem.answer >= 0
        assert problem.solution.endswith(f"The answer is {problem.answer}.")


@pytest.mark.parametrize(
    ("text", "answer"),
    [("no answer", None), ("The answer is 7", None), ("The answer is 3. The answer is 12.", 12)],
)
def test_parse_answer(text, answer):
    assert parse_answer(text) == answer


def test_every_shape_and_wording_occurs():
    assert len(SHAPES) >= 16
    assert {problem.shape for problem in _PROBLEMS} == {shape.name for shape in SHAPES}
    assert {problem.num_steps for problem in _PROBLEMS} == {1, 2, 3}
    assert all(len(shape.questions) >= 2 for shape in SHAPES)
    assert sum(len(shape.questions) >= 3 for shape in SHAPES) >= 20


def test_text_is_clean_ascii_of_moderate_length():
    for problem in _PROBLEMS:
        for text in (problem.question, problem.solution):
            assert text.isascii() and text.isprintable()
            assert not re.search(r"[{}]|  | [.,?]|\.\.", text), text
            assert not re.search(r"\b1 \w+s\b|are 1\b", text), text
        assert problem.question.endswith("?")
        assert 60 <= len(problem.question) <= 260
        assert 80 <= len(problem.solution) <= 420


def test_solution_restates_every_given_number():
    for problem in _PROBLEMS:
        given = set(re.findall(r"\d+", problem.question))
        assert given <= set(re.findall(r"\d+", problem.solution)), problem


def test_problems_depend_on_seed_and_index_alone():
    assert [word_problem(TRAIN_SEED, index) for index in (42, 7)] == [_PROBLEMS[42], _PROBLEMS[7]]
    assert word_problem(HELD_OUT_SEED, 7) != _PROBLEMS[7]
    # Pinned, so that an edit or another Python version cannot quietly change the corpus.
    assert _PROBLEMS[0].question == (
        "How many dollars does Adam have left on Thursday, if he has 85 dollars "
        "and buys 10 eggs that cost 4 dollars each?"
    )


def test_questions_are_varied_and_held_out_ones_are_new():
    assert len({problem.question for problem in _PROBLEMS}) >= 0.995 * len(_PROBLEMS)
    assert occurs_in_training(_PROBLEMS[5], 10)
    assert not occurs_in_training(_PROBLEMS[15], 10)
    assert len(train_questions(10)) == 10


def test_negative_arguments_are_refused():
    with pytest.raises(ValueError, match="index=-1"):
        word_problem(0, -1)

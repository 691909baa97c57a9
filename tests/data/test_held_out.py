import pytest

from flexdraft_jax.data.code import code_tasks
from flexdraft_jax.data.held_out import (
    DEFAULT_PROMPTS,
    HeldOutPrompt,
    default_prompts,
    distinct_ngrams,
    held_out_prompts,
    read_prompts,
    write_prompts,
)
from flexdraft_jax.data.word_problems import parse_answer, train_questions


def test_shipped_prompts_are_enough_small_and_plain():
    assert DEFAULT_PROMPTS.stat().st_size < 150_000
    for domain in ("word_problems", "code"):
        prompts = default_prompts(domain)
        assert len(prompts) >= 100
        assert len({prompt.prompt for prompt in prompts}) == len(prompts)
        for prompt in prompts:
            assert prompt.domain == domain
            assert prompt.prompt.isascii() and len(prompt.prompt) <= 400
            assert prompt.reference.isascii()


def test_shipped_word_problems_have_their_answers_and_are_unseen():
    seen = train_questions(100_000)
    for prompt in default_prompts("word_problems"):
        assert prompt.answer == parse_answer(prompt.reference)
        assert prompt.prompt not in seen


def test_shipped_code_is_not_training_code():
    """Also where this Python's library differs from the one that the file was made with."""
    seen = {task.response for task in code_tasks("train")}
    prompts = default_prompts("code")
    assert sum(prompt.reference in seen for prompt in prompts) <= len(prompts) // 20
    assert all(prompt.answer is None for prompt in prompts)


def test_shipped_word_problems_are_what_the_generator_makes():
    prompts = default_prompts("word_problems")
    assert held_out_prompts("word_problems", 20) == prompts[:20]


def test_no_more_shipped_prompts_than_there_are():
    assert default_prompts("code", 5) == default_prompts("code")[:5]
    count = len(default_prompts("code"))
    for wrong in (0, count + 1):
        with pytest.raises(ValueError, match=f"num_prompts={wrong}: must be between 1 and {count}"):
            default_prompts("code", wrong)


def test_code_prompts_take_turns_among_modules():
    prompts = held_out_prompts("code", 10)
    assert prompts == held_out_prompts("code", 20)[:10]
    modules = {prompt.prompt.split("`")[-2] for prompt in prompts}
    assert len(modules) == 10


def test_file_round_trip(tmp_path):
    prompts = [
        HeldOutPrompt("word_problems", "What is 1 + 1?", "1 + 1 = 2.\nThe answer is 2.", 2),
        HeldOutPrompt("code", 'def f():\n    """x"""', "    return 1"),
    ]
    path = tmp_path / "prompts.jsonl"
    write_prompts(path, prompts)
    assert read_prompts(path) == prompts
    assert "answer" not in path.read_text().splitlines()[1].replace("The answer", "")


@pytest.mark.parametrize("line", ['{"prompt": "x"}', "[1]", "nonsense", '{"domain": "x"}'])
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"domain": "code", "prompt": "p", "reference": "r"}\n' + line + "\n")
    with pytest.raises(ValueError, match="line 2"):
        read_prompts(path)


def test_bad_counts_and_domains_are_refused():
    with pytest.raises(ValueError, match="count"):
        held_out_prompts("word_problems", 0)
    with pytest.raises(ValueError, match="at most"):
        held_out_prompts("code", 1_000_000)
    with pytest.raises(ValueError, match="'poems'"):
        default_prompts("poems")


def test_distinct_ngrams():
    assert distinct_ngrams([list(range(20))]) == 1.0
    assert distinct_ngrams([[7] * 20]) == pytest.approx(1 / 13)
    assert distinct_ngrams([[1, 2] * 10], n=2) == pytest.approx(2 / 19)
    assert distinct_ngrams([list(range(20)), [7] * 20, [1, 2]]) == pytest.approx((1 + 1 / 13) / 2)
    assert distinct_ngrams([]) == distinct_ngrams([[1, 2]]) == 0.0
    # A text counts for itself: repeating another one is no loop.
    assert distinct_ngrams([list(range(20))] * 3) == 1.0
    with pytest.raises(ValueError, match="n must"):
        distinct_ngrams([[1]], n=0)

import pytest

from flexdraft_jax.data.code import code_tasks, is_held_out


def test_tasks_are_ascii_and_of_the_promised_size():
    for split in ("train", "held_out"):
        for task in code_tasks(split):
            assert task.prompt.isascii() and task.response.isascii()
            assert 120 <= len(task.prompt) + len(task.response) <= 1100
            assert f"`{task.module}`" in task.prompt
            assert "\t" not in task.prompt + task.response
            assert task.response.strip()


def test_splits_share_no_module_and_no_response():
    train, held_out = code_tasks("train"), code_tasks("held_out")
    assert {task.module for task in train}.isdisjoint(task.module for task in held_out)
    assert {task.response for task in train}.isdisjoint(task.response for task in held_out)
    assert 0.01 < len(held_out) / len(train) < 0.1
    assert is_held_out(held_out[0].module) and not is_held_out(train[0].module)


def test_there_is_enough_text_and_no_test_code():
    tasks = code_tasks("train")
    assert sum(len(task.prompt) + len(task.response) for task in tasks) > 3_000_000
    parts = {part for task in tasks for part in task.module.split(".")}
    assert not parts & {"test", "tests", "idlelib", "site-packages", "lib2to3", "encodings"}


def test_first_task_of_a_function_compiles():
    """A short function's prompt and response make valid source together."""
    compiled = 0
    for task in code_tasks("held_out"):
        header, _, head = task.prompt.partition("\n\n")
        if header.startswith("Complete") and len(task.response) < 300:
            compile(head + "\n" + task.response, task.module, "exec")
            compiled += 1
    assert compiled > 50


def test_tasks_have_a_fixed_order():
    assert code_tasks("held_out") == code_tasks("held_out")


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'validation'"):
        code_tasks("validation")

"""Models by directory, the embedded default among them."""

import os

import pytest

import flexdraft_jax as fd
from flexdraft_jax import assets
from flexdraft_jax.evaluation.loading import bad_input_exits, check_outputs, check_plot, load_models


@pytest.fixture(scope="module")
def directory(models, tmp_path_factory):
    """Laid out like the embedded default."""
    path = tmp_path_factory.mktemp("default")
    fd.save_target(models.target, path / "target")
    fd.save_draft(models.draft, models.target, path / "draft")
    models.tokenizer.save_pretrained(path / "target")
    return path


def test_directories_are_loaded(directory, models) -> None:
    loaded = load_models(directory / "target", directory / "draft")
    assert loaded.target.config == models.target.config
    assert loaded.draft is not None and loaded.draft.config == models.draft.config
    assert len(loaded.tokenizer) == len(models.tokenizer)
    assert loaded.name == "target"


def test_plain_decoding_needs_no_draft(directory) -> None:
    assert load_models(directory / "target").draft is None


def test_a_draft_alone_is_refused(directory) -> None:
    with pytest.raises(ValueError, match="without target_directory"):
        load_models(None, directory / "draft")


def test_a_missing_tokenizer_is_named(directory, models, tmp_path) -> None:
    fd.save_target(models.target, tmp_path)
    with pytest.raises(ValueError, match="no tokenizer_config.json"):
        load_models(tmp_path)


def test_default_is_loaded_where_no_directory_is_named(directory, monkeypatch) -> None:
    monkeypatch.setattr(assets, "default_directory", lambda: directory)
    target, draft, tokenizer = fd.load_default(dtype="bfloat16")
    assert target.dtype == "bfloat16" and draft.config.block_size == 4
    assert tokenizer.chat_template
    assert load_models().name == "embedded default"


def test_a_missing_default_says_what_to_do(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(assets, "default_directory", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match="lacks target/config.json.*complete clone"):
        fd.load_default()


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["missing/a.json"], "a.json: there is no directory .*missing"),
        (["new.json", "."], "must be a file, and is a directory"),
        (["new.json", None, "./new.json"], "new.json: must be a file of its own"),
        (["link.json"], "link.json: must be a file of its own"),
    ],
)
def test_files_that_could_not_be_written_are_named(tmp_path, paths, message) -> None:
    (tmp_path / "input.json").touch()
    (tmp_path / "link.json").symlink_to("input.json")
    named = [path and f"{tmp_path}/{path}" for path in paths]
    with pytest.raises(ValueError, match=message):
        check_outputs(*named, others=[tmp_path / "input.json"])
    check_outputs(tmp_path / "new.json", None, tmp_path / "b", others=[tmp_path / "input.json"])
    check_outputs(os.devnull, os.devnull)
    (tmp_path / "away.json").symlink_to("nowhere.json")
    check_outputs(tmp_path / "away.json")
    names = ["away.json", "input.json", "link.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_file_that_may_not_be_written_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(ValueError, match="new.png: can't be written"):
        check_outputs(tmp_path / "new.png")


def test_a_plot_must_be_a_picture() -> None:
    for path in ("a.png", "b/c.SVG", None):
        check_plot(path)
    for path in ("a.txt", "a", "png"):
        with pytest.raises(ValueError, match=f"{path}: must end in one of .*\\.png"):
            check_plot(path)


def test_bad_input_ends_a_script_with_one_line() -> None:
    with pytest.raises(SystemExit, match="error: block_size=1"), bad_input_exits():
        raise ValueError("block_size=1")
    with pytest.raises(ZeroDivisionError), bad_input_exits():
        raise ZeroDivisionError

"""When Hugging Face decodes, too, and what its rows are called."""

import jax
import jax.numpy as jnp
import pytest

import flexdraft_jax as fd
from flexdraft_jax.evaluation import peer_methods
from flexdraft_jax.evaluation.peer_methods import describe_peer, hugging_face, skipped_peer


class Peer:
    """Instead of PyTorch."""

    assistant = None
    description = "fake"

    def __init__(self, directory, assistant=None) -> None:
        assert (directory is not None) and assistant is None

    def fastest_threads(self, prompts, **options) -> int:
        return 1

    def generate(self, prompts, **options) -> list[list[int]]:
        return [[1]] * len(prompts)


@pytest.fixture(autouse=True)
def with_torch(monkeypatch) -> None:
    monkeypatch.setattr(peer_methods, "has_torch", lambda: True)
    monkeypatch.setattr(peer_methods, "HuggingFace", Peer)


@pytest.fixture
def half(models) -> fd.Target:
    """The target in bfloat16."""
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), models.target.params)
    return fd.Target(models.target.config, params)


def names(target: fd.Target, peers: str) -> list[str]:
    peer = hugging_face(target, None, peers)
    methods = peer_methods.peer_methods(peer, target, [[1]], 1, None)
    assert all(method.same_tokens == (target.dtype == jnp.float32) for method in methods)
    return [method.name.removesuffix(", 1 thread") for method in methods]


def test_it_decodes_where_it_computes_as_the_target_does(models, half, monkeypatch) -> None:
    alike = ["huggingface", "huggingface, prompt lookup"]
    assert names(models.target, "auto") == names(models.target, "huggingface") == alike
    elsewhere = [name.replace("face", "face on the CPU in float32") for name in alike]
    assert names(half, "auto") == [] and names(half, "huggingface") == elsewhere
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert names(models.target, "auto") == []
    assert names(models.target, "huggingface") == elsewhere


def test_it_can_be_left_out(models, half, monkeypatch) -> None:
    def note(target: fd.Target, peers: str) -> str:
        return describe_peer(hugging_face(target, None, peers), skipped_peer(target, peers))

    assert names(models.target, "none") == []
    assert note(models.target, "none") == "skipped (peers=none)"
    assert note(models.target, "auto").startswith("fake, prompt lookup")
    assert note(half, "auto").startswith("skipped (it decodes on the CPU in float32 alone;")
    monkeypatch.setattr(peer_methods, "has_torch", lambda: False)
    assert note(models.target, "auto") == "skipped (PyTorch is not installed)"


def test_what_was_asked_for_is_not_left_out_silently(models, monkeypatch) -> None:
    with pytest.raises(ValueError, match="assistant='a': .* left out: peers=none$"):
        hugging_face(models.target, "a", "none")
    monkeypatch.setattr(peer_methods, "has_torch", lambda: False)
    with pytest.raises(ValueError, match="assistant='a': .* PyTorch is not installed; pip install"):
        hugging_face(models.target, "a")
    with pytest.raises(ValueError, match="peers=huggingface: PyTorch is not installed; pip"):
        hugging_face(models.target, None, "huggingface")

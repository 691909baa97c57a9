"""Loading straight to shards, on eight devices of a process of its own."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import flexdraft_jax as fd
from flexdraft_jax.checkpoints.hf import target_rules
from flexdraft_jax.checkpoints.hf_config import target_config_to_hf
from flexdraft_jax.checkpoints.weights import flatten, place, stored_shapes
from flexdraft_jax.models.target import target_shapes

_LOAD = """
import json, re, sys
import jax
import numpy as np
import flexdraft_jax as fd
from flexdraft_jax.models.target import target_shardings
from flexdraft_jax.parallel.mesh import parse_mesh

mesh = parse_mesh(sys.argv[2]).build()
assert mesh.size == 8
target = fd.load_target(sys.argv[1], mesh=mesh)
leaves = jax.tree.leaves(jax.block_until_ready(target.params))
peak = 2**10 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
report = {
    "peak": peak,
    "loaded": sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards),
    "largest": max(leaf.nbytes for leaf in leaves),
}
places = jax.tree.leaves(target_shardings(target.config, mesh))
assert [leaf.sharding for leaf in leaves] == places
if sys.argv[3]:
    on_one = jax.tree.leaves(fd.load_target(sys.argv[1]).params)
    # As from a bucket.
    read_in_parts = jax.tree.leaves(fd.load_target("file://" + sys.argv[1], mesh=mesh).params)
    for leaf, whole, other in zip(leaves, on_one, read_in_parts, strict=True):
        np.testing.assert_array_equal(leaf, whole)
        np.testing.assert_array_equal(other, whole)
        assert other.sharding == leaf.sharding
print(json.dumps(report))
"""


def _load(directory: Path, mesh: str, compare: bool) -> dict[str, int]:
    """What a process with eight devices says that has loaded the target."""
    environment = os.environ | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    }
    command = [sys.executable, "-c", _LOAD, str(directory), mesh, "compare" if compare else ""]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _write(directory: Path, config: fd.TargetConfig) -> None:
    """A checkpoint of random weights, all of them from one pool, in a file for each 20 tensors."""
    shapes = flatten(target_shapes(config))
    pool = np.random.default_rng(0).normal(size=max(x.size for x in shapes.values()))
    pool = pool.astype(np.float32) * 0.02
    placements = place(target_shapes(config), target_rules(config))
    tensors = {
        name: pool[: math.prod(shape)].reshape(shape)
        for name, shape in stored_shapes(target_shapes(config), placements).items()
    }
    index = {}
    names = sorted(tensors)
    for first in range(0, len(names), 20):
        part, file = names[first : first + 20], f"model-{first:05d}.safetensors"
        safetensors.numpy.save_file({name: tensors[name] for name in part}, directory / file)
        index |= dict.fromkeys(part, file)
    text = json.dumps({"weight_map": index})
    (directory / "model.safetensors.index.json").write_text(text)
    (directory / "config.json").write_text(json.dumps(target_config_to_hf(config)))


def _config(**sizes: int) -> fd.TargetConfig:
    layers = sizes["num_layers"]
    return fd.TargetConfig("qwen3", qk_norm=True, layer_windows=(None,) * layers, **sizes)


@pytest.mark.parametrize("mesh", ["data=2,tensor=4", "fsdp=4,tensor=2"])
def test_parts_are_those_of_the_whole(tmp_path: Path, mesh: str) -> None:
    sizes = {"num_layers": 1, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
    _write(tmp_path, _config(vocab_size=64, hidden_size=32, intermediate_size=48, **sizes))
    _load(tmp_path, mesh, compare=True)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads what Linux counts")
def test_a_large_checkpoint_takes_its_own_size_and_little_more(tmp_path: Path) -> None:
    """2 GB; pytest -s shows how much more."""
    sizes = {"num_layers": 8, "num_heads": 16, "num_kv_heads": 8, "head_dim": 128}
    _write(tmp_path, _config(vocab_size=32768, hidden_size=2048, intermediate_size=5632, **sizes))
    for mesh in ("tensor=8", "fsdp=8"):
        found = _load(tmp_path, mesh, compare=False)
        assert found["loaded"] > 2e9
        beside = found["peak"] - found["loaded"]
        print(f"{mesh}: {beside / 1e6:,.0f} MB beside {found['loaded'] / 1e6:,.0f} MB of weights")
        assert beside < 1.3 * found["largest"] + 500e6

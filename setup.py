"""Installs the library and its scripts; configurations and tests stay in the repository."""

from setuptools import find_packages, setup

setup(
    name="flexdraft_jax",
    version="0.1.0",
    description="FlexDraft in JAX: a language model that drafts for itself, losslessly",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=[
        *find_packages(include=["flexdraft_jax", "flexdraft_jax.*"]),
        "flexdraft_jax.infer",
        "flexdraft_jax.train",
    ],
    # `python -m flexdraft_jax.infer.demo` is infer/demo.py where there is no repository.
    package_dir={"flexdraft_jax.infer": "infer", "flexdraft_jax.train": "train"},
    package_data={"flexdraft_jax": ["py.typed", "assets/**/*"]},
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.8",
        "flax>=0.12",
        "grain>=0.2.12",
        "huggingface_hub>=1",
        "importlib_resources>=6",  # tensorflow-datasets imports it without saying so
        "jax>=0.10,<0.12",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11.20",
        "pyarrow>=17",
        "rich>=13.7",
        "safetensors>=0.5",
        "tensorboardX>=2.6",
        "tensorstore>=0.1.84",
        "tensorflow-datasets>=4.9.9",
        "tokenizers>=0.22",
        "transformers>=5,<6",
    ],
    extras_require={
        "test": [
            "hypothesis>=6.100",
            "ipykernel>=6.29",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "pytest>=8.2",
            "pytest-xdist>=3.6",
            "setuptools>=77",
        ],
        "docs": [
            "mkdocs>=1.6,<2",
            "mkdocs-material>=9.5,<10",
            "mkdocstrings[python]>=0.27",
        ],
        "peers": ["torch>=2.5"],
        # JAX for accelerators; the range is that of `jax` above.
        "cuda": ["jax[cuda12]>=0.10,<0.12"],
        "tpu": ["jax[tpu]>=0.10,<0.12"],
        "tpu_plan": ["libtpu>=0.0.30"],
        "dev": ["mypy>=1.14", "pre-commit>=4", "ruff>=0.9"],
    },
)

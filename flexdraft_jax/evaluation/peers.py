"""Another implementation of plain decoding on the same weights: PyTorch, through transformers."""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any


def has_torch() -> bool:
    """Whether PyTorch is installed. Nothing in the library needs it."""
    return importlib.util.find_spec("torch") is not None


class HuggingFace:
    """Greedy `generate` of a transformers model in float32, with its own key/value cache."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Loads a Hugging Face directory. Needs PyTorch."""
        import torch
        import transformers
        from transformers import AutoModelForCausalLM

        transformers.utils.logging.disable_progress_bar()
        self._torch: Any = torch
        self._default_threads = torch.get_num_threads()
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            os.fspath(directory), dtype=torch.float32, local_files_only=True
        ).eval()
        # As many tokens as were asked for, whatever they are.
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = 0

    @property
    def description(self) -> str:
        """Versions, for a report."""
        import transformers

        return f"transformers {transformers.__version__}, torch {self._torch.__version__}"

    @property
    def num_threads(self) -> int:
        """How many threads PyTorch takes unless told otherwise."""
        return self._default_threads

    def generate(
        self, prompts: Sequence[Sequence[int]], num_tokens: int, num_threads: int
    ) -> list[list[int]]:
        """Exactly `num_tokens` new tokens per prompt.

        Args:
            prompts: lists of token ids, all of one length.
            num_tokens: new tokens of each.
            num_threads: that PyTorch may take.

        Raises:
            ValueError: prompts of several lengths.
        """
        if len({len(prompt) for prompt in prompts}) != 1:
            raise ValueError("prompts: must all be of one length")
        self._torch.set_num_threads(num_threads)
        tokens = self._torch.tensor([list(prompt) for prompt in prompts])
        with self._torch.inference_mode():
            out = self._model.generate(
                tokens,
                attention_mask=self._torch.ones_like(tokens),
                do_sample=False,
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
            )
        return out[:, tokens.shape[1] :].tolist()

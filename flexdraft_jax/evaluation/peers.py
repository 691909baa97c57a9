"""Another implementation of decoding on the same weights: PyTorch, through transformers."""

import importlib.util
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from flexdraft_jax.evaluation.timing import seconds

_PADDING = 0  # Any token: the mask hides it.
_TRIAL_TOKENS = 16


def has_torch() -> bool:
    """Whether PyTorch is installed. Nothing in the library needs it."""
    return importlib.util.find_spec("torch") is not None


class HuggingFace:
    """`generate` of a transformers model: float32, on the CPU.

    Attributes:
        assistant: name of the model that drafts for it; None where there is none.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        assistant: str | os.PathLike[str] | None = None,
    ) -> None:
        """Loads Hugging Face directories. Needs PyTorch.

        Args:
            directory: of the model.
            assistant: of a smaller one that drafts for it.

        Raises:
            ValueError: the assistant's directory is none, or it has another vocabulary.
        """
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        self._torch: Any = torch
        self._default_threads = torch.get_num_threads()
        self._model = self._load(directory)
        self._assistant = None
        self.assistant: str | None = None
        if assistant is not None:
            try:
                self._assistant = self._load(assistant)
            except OSError as error:
                raise ValueError(f"assistant={os.fspath(assistant)!r}: {error}") from error
            sizes = [m.config.get_text_config().vocab_size for m in (self._model, self._assistant)]
            if sizes[0] != sizes[1]:
                raise ValueError(
                    f"assistant={os.fspath(assistant)!r}: must have the target's vocabulary of "
                    f"{sizes[0]} tokens, has {sizes[1]}"
                )
            self.assistant = pathlib.Path(assistant).resolve().name

    def _load(self, directory: str | os.PathLike[str]) -> Any:
        from transformers import AutoModelForCausalLM, GenerationConfig

        model = AutoModelForCausalLM.from_pretrained(
            os.fspath(directory), dtype=self._torch.float32, local_files_only=True
        ).eval()
        # The directory's own may penalise repetition, in greedy decoding too.
        model.generation_config = GenerationConfig(pad_token_id=_PADDING)
        return model

    @property
    def description(self) -> str:
        """Versions, for a report."""
        import transformers

        return (
            f"transformers {transformers.__version__}, torch {self._torch.__version__}, float32 on "
            "the CPU"
        )

    def fastest_threads(self, prompts: Sequence[Sequence[int]], **options: Any) -> int:
        """PyTorch's own choice of threads or a single one, whichever decodes these prompts sooner.

        Small models can be faster without a second thread. The arguments are those of `generate`.
        """

        def trial(num_threads: int) -> float:
            return seconds(lambda: self.generate(prompts, _TRIAL_TOKENS, num_threads, **options))

        counts = dict.fromkeys((self._default_threads, 1))
        # The better of two: the first warms up.
        return min(counts, key=lambda num_threads: min(trial(num_threads) for _ in range(2)))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        num_tokens: int,
        num_threads: int,
        *,
        prompt_lookup: int | None = None,
        assisted: bool = False,
        temperature: float = 0.0,
        stop_token_ids: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """New tokens of each prompt, up to a stop token (included) or `num_tokens`.

        Args:
            prompts: lists of token ids, of any lengths.
            num_tokens: at most, of each.
            num_threads: that PyTorch may take.
            prompt_lookup: drafts of this many tokens are copied from where the last tokens stood
                before; None copies none.
            assisted: the assistant drafts, as many tokens as transformers chooses.
            temperature: 0 is greedy; every call draws the same random numbers.
            stop_token_ids: tokens that end a row; None stops at no token.

        Raises:
            ValueError: drafts for several prompts, which transformers has for one, or assisted
                generation without an assistant.
        """
        if assisted and self._assistant is None:
            raise ValueError("assisted=True: there is no assistant")
        self._torch.set_num_threads(num_threads)
        self._torch.manual_seed(0)
        drawing = {"temperature": temperature, "top_k": 0} if temperature else {}
        width = max(map(len, prompts))
        stops = list(stop_token_ids or ())
        with self._torch.inference_mode():
            out = self._model.generate(
                self._torch.tensor([[_PADDING] * (width - len(p)) + list(p) for p in prompts]),
                attention_mask=self._torch.tensor(
                    [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
                ),
                do_sample=temperature > 0,
                **drawing,
                max_new_tokens=num_tokens,
                eos_token_id=stops or None,
                prompt_lookup_num_tokens=prompt_lookup,
                assistant_model=self._assistant if assisted else None,
            )
        return [_until_stop(row, stops) for row in out[:, width:].tolist()]


def _until_stop(tokens: list[int], stops: Sequence[int]) -> list[int]:
    """Without the padding behind a row that ended before others."""
    return tokens[: next((i for i, t in enumerate(tokens, 1) if t in stops), len(tokens))]

"""What a target and its draft look like: frozen, hashable, and therefore static under `jax.jit`."""

import dataclasses
import math
import sys
import types
import typing
from typing import Any, Literal

# What arrays are indexed with.
INT32_MAX = 2**31 - 1
MAX_LAYERS = 1_000  # Far beyond what exists; a mistyped number should not fill the memory.
# Bounds of an integer and of a float.
COUNT = (1, INT32_MAX)
POSITIVE = (sys.float_info.min, math.inf)


def check_fields(config: Any, group: str = "", **bounds: tuple[float, float]) -> None:
    """Holds the fields of a dataclass against their declared types, and numbers against bounds.

    Args:
        config: the dataclass.
        group: what stands before a field's name in an error, such as "train.".
        bounds: of a field, both included; None is always in them. Infinity never is.

    Raises:
        TypeError: a field holds something of another type; it is named, with the value.
        ValueError: a number or a name is not one of those that there may be.
    """
    for name, kind in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if typing.get_origin(kind) is typing.Literal:
            if type(value) is not str or value not in typing.get_args(kind):
                raise ValueError(
                    f"{group}{name}={value!r}: must be one of "
                    + ", ".join(map(repr, typing.get_args(kind)))
                )
        elif not _is_of(value, kind):
            raise TypeError(f"{group}{name}={value!r}: must be {_in_words(kind)}")
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        if value is None or low <= value <= min(high, sys.float_info.max):
            continue
        if (low, high) == POSITIVE:
            right = "positive, and finite"
        elif high < INT32_MAX:
            right = f"between {low:g} and {high:g}"
        elif value >= low:
            right = "finite" if high == math.inf else f"at most {high}"
        else:
            right = f"at least {low:g}"
        raise ValueError(f"{group}{name}={value}: must be {right}")


def check_kind(name: str, value: Any, kind: Any) -> None:
    """Raises TypeError where an argument is none of a class, or of several with | between them."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__name__}: must be {_in_words(kind)}")


def _is_of(value: Any, kind: Any) -> bool:
    if isinstance(kind, types.UnionType):
        return any(_is_of(value, one) for one in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        return type(value) is tuple and all(_is_of(x, inner) for x in value)
    if typing.get_origin(kind) is dict:
        inner = typing.get_args(kind)[1]
        return type(value) is dict and all(_is_of(x, inner) for x in value.values())
    if kind is float:  # One of NumPy is one, too.
        return isinstance(value, int | float) and not isinstance(value, bool)
    # Not isinstance: True is an int.
    return type(value) is kind


def _in_words(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join(map(_in_words, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        return f"a tuple, each entry {_in_words(typing.get_args(kind)[0])}"
    if typing.get_origin(kind) is dict:
        return f"a dictionary, each value {_in_words(typing.get_args(kind)[1])}"
    words = {int: "an integer", float: "a number", str: "a string", bool: "True or False"}
    return words.get(kind, "None" if kind is types.NoneType else f"a {kind.__name__}")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Rescaled rotary frequencies, as a Hugging Face config names them.

    Attributes:
        rope_type: "linear" divides every frequency by `factor`; "llama3" divides the low
            frequencies, keeps the high ones and interpolates in between.
        factor: how many times longer the context has become.
        low_freq_factor: llama3 only: wavelengths above `original / low_freq_factor` are rescaled.
        high_freq_factor: llama3 only: wavelengths below `original / high_freq_factor` are kept.
        original_max_position_embeddings: llama3 only: the context before rescaling, in tokens.
    """

    rope_type: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self) -> None:
        check_fields(
            self,
            factor=POSITIVE,
            low_freq_factor=POSITIVE,
            high_freq_factor=POSITIVE,
            original_max_position_embeddings=COUNT,
        )
        if self.rope_type == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor={self.low_freq_factor}: must be below "
                f"high_freq_factor={self.high_freq_factor}"
            )


@dataclasses.dataclass(frozen=True)
class Experts:
    """A mixture of experts in the place of every layer's MLP.

    Attributes:
        number: X, MLPs of a layer.
        per_token: k, how many of them a token goes through.
        normalize: the k probabilities are divided by their sum.
    """

    number: int
    per_token: int
    normalize: bool

    def __post_init__(self) -> None:
        check_fields(self, number=COUNT)
        if not 1 <= self.per_token <= self.number:
            raise ValueError(f"per_token={self.per_token}: must be from 1 to number={self.number}")

    def fetched(self, num_tokens: int) -> bool:
        """Whether a pass of so many tokens fetches their experts' matrices, or goes through all."""
        return num_tokens * self.per_token <= self.number


@dataclasses.dataclass(frozen=True)
class TargetConfig:
    """The frozen language model.

    Attributes:
        model_type: the Hugging Face family, a key of `checkpoints.families.FAMILIES`. Only
            checkpoints ask for it; the computation follows from the other fields.
        vocab_size: V.
        hidden_size: E.
        intermediate_size: F; of each expert, where there are experts.
        num_layers: L.
        num_heads: N query heads. `num_heads * head_dim` need not be E.
        num_kv_heads: K key/value heads; divides N.
        head_dim: H.
        rms_norm_eps: added to the mean square inside every norm.
        rope_theta: base of the rotary frequencies.
        local_rope_theta: their base in layers with a window, which `rope_scaling` leaves alone;
            None for the same tables in all layers.
        rope_scaling: None for plain rotary embeddings.
        partial_rotary_factor: the share of each head, from its start, that RoPE rotates.
        tie_word_embeddings: the LM head is the transposed embedding table.
        qkv_bias: the q, k and v projections have a bias.
        o_bias: the output projection has a bias.
        mlp_bias: the three MLP projections have a bias.
        qk_norm: queries and keys are normalised per head before RoPE.
        query_pre_attn_scalar: attention scores are divided by its square root; None is head_dim.
        hidden_act: of the MLP's gate: "silu" or "gelu_pytorch_tanh".
        output_norms: what attention and MLP put out is normalised before it is added.
        zero_centered_norms: norms multiply by one plus their scale.
        scale_embeddings: embeddings are multiplied by the square root of E; a tied head is not.
        experts: None for one MLP a layer.
        layer_windows: per layer, how many positions back (itself included) a token sees;
            None sees all. Length L.
        max_position_embeddings: the longest sequence the model was made for, in tokens.
        eos_token_ids: tokens that end a text. Decoding stops at them only when asked to.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    local_rope_theta: float | None = None
    rope_scaling: RopeScaling | None = None
    partial_rotary_factor: float = 1.0
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    query_pre_attn_scalar: int | None = None
    hidden_act: Literal["silu", "gelu_pytorch_tanh"] = "silu"
    output_norms: bool = False
    zero_centered_norms: bool = False
    scale_embeddings: bool = False
    experts: Experts | None = None
    layer_windows: tuple[int | None, ...] = ()
    max_position_embeddings: int = 32_768
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_fields(
            self,
            "",
            num_layers=(1, MAX_LAYERS),
            rms_norm_eps=POSITIVE,
            rope_theta=POSITIVE,
            local_rope_theta=POSITIVE,
            partial_rotary_factor=(0, INT32_MAX),
            query_pre_attn_scalar=COUNT,
            max_position_embeddings=COUNT,
            **dict.fromkeys(_POSITIVE_TARGET_FIELDS, COUNT),
        )
        if not self.layer_windows:
            object.__setattr__(self, "layer_windows", (None,) * self.num_layers)
        for field, values, low, high in (
            ("layer_windows", self.layer_windows, *COUNT),
            ("eos_token_ids", self.eos_token_ids, 0, self.vocab_size - 1),
        ):
            if not all(value is None or low <= value <= high for value in values):
                raise ValueError(f"{field}={values}: must be between {low} and {high} each")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads={self.num_kv_heads}: must divide num_heads={self.num_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim}: must be even, RoPE rotates pairs")
        if not 2 <= self.rotary_dim <= self.head_dim or self.rotary_dim % 2:
            raise ValueError(
                f"partial_rotary_factor={self.partial_rotary_factor}: must leave an even number of "
                f"head_dim={self.head_dim}, 2 at least, to rotate"
            )
        if len(self.layer_windows) != self.num_layers:
            raise ValueError(
                f"layer_windows has {len(self.layer_windows)} entries: must have one for each of "
                f"the num_layers={self.num_layers} layers"
            )

    @property
    def rotary_dim(self) -> int:
        """How many entries of a head RoPE rotates."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def attention_weights(self) -> int:
        """Entries of a layer's four projections, biases not counted."""
        heads = 2 * self.num_heads + 2 * self.num_kv_heads
        return self.hidden_size * self.head_dim * heads

    @property
    def layer_weights(self) -> int:
        """Entries of a layer's matrices, those of all its experts included."""
        return self._with_experts(self.experts.number if self.experts else 1)

    @property
    def active_layer_weights(self) -> int:
        """Those that a token needs: of its own experts."""
        return self._with_experts(self.experts.per_token if self.experts else 1)

    def read_layer_weights(self, num_tokens: int) -> int:
        """Those that a pass of so many tokens reads at most."""
        if self.experts is None:
            return self.layer_weights
        return self._with_experts(min(self.experts.number, num_tokens * self.experts.per_token))

    def multiplied_layer_weights(self, num_tokens: int) -> int:
        """Those that each token of such a pass is multiplied with."""
        if self.experts is None or self.experts.fetched(num_tokens):
            return self.active_layer_weights
        return self.layer_weights

    def _with_experts(self, count: int) -> int:
        router = self.hidden_size * self.experts.number if self.experts else 0
        mlps = 3 * self.hidden_size * self.intermediate_size * count
        return self.attention_weights + router + mlps


_POSITIVE_TARGET_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_heads",
    "num_kv_heads",
    "head_dim",
)


@dataclasses.dataclass(frozen=True)
class DraftConfig:
    """The trained part.

    Attributes:
        num_draft_layers: D, the last D of the target's layers get draft attention. 1 <= D <= L.
        block_size: n it was trained with; decoding may use another.
        calibration_rank: r, the hidden width of the calibration MLP.
    """

    num_draft_layers: int
    block_size: int
    calibration_rank: int

    def __post_init__(self) -> None:
        check_fields(self, num_draft_layers=COUNT, calibration_rank=COUNT)
        if self.block_size < 2:
            raise ValueError(
                f"block_size={self.block_size}: must be at least 2 (one bonus and one draft)"
            )

    def calibration_weights(self, target: TargetConfig) -> int:
        """Of the MLP's matrices: E -> r twice, and r -> V."""
        return self.calibration_rank * (2 * target.hidden_size + target.vocab_size)

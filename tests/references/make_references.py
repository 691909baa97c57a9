"""Writes the reference models and what Hugging Face computes with them.

    python tests/references/make_references.py [CASE ...]

Writes all cases, or those named. Needs torch. Each folder beside this file gets a tiny random model
as a Hugging Face directory and `expected.npz`: the outputs of every sub-module for fixed tokens,
and greedy continuations.
"""

import pathlib
import sys
from typing import Any

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
PROMPT_LENGTH = 8
NEW_TOKENS = 32

# 4 * 16 is not 48, except where a case says otherwise.
_SHAPE = dict(
    vocab_size=128,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    eos_token_id=None,
)

CASES: dict[str, dict[str, Any]] = {
    "qwen3": dict(head_dim=16, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    # One window layer above two full ones; biases on q, k, v and o.
    "qwen3-window-bias-tied": dict(
        head_dim=16,
        attention_bias=True,
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=8,
        layer_types=["full_attention", "full_attention", "sliding_attention"],
    ),
    "qwen2-tied": dict(tie_word_embeddings=True),  # head_dim = 48 / 4
    # Of the 8 wavelengths one is kept, two are blended and five are stretched.
    "llama-llama3-tied": dict(
        head_dim=16,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "llama-linear-bias": dict(
        attention_bias=True,
        mlp_bias=True,
        rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0},
    ),
    "mistral-window": dict(head_dim=16, sliding_window=8),
    # RoPE rotates 6 of the 48 / 4 entries of a head.
    "phi3-window": dict(
        sliding_window=8,
        pad_token_id=None,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 500.0,
            "partial_rotary_factor": 0.5,
        },
    ),
    "gemma3_text-window": dict(
        head_dim=16,
        query_pre_attn_scalar=12,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    ),
    "qwen3_moe": dict(
        head_dim=16,
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        norm_topk_prob=True,
    ),
}


def build_model(
    name: str, seed: int, precision: torch.dtype = torch.bfloat16
) -> transformers.PreTrainedModel:
    """A random float32 model of a case, its weights rounded so that `precision` holds them.

    Norms lie around 1, biases and matrices are large enough that a wrong one shows.
    """
    config = transformers.AutoConfig.for_model(name.split("-")[0], **_SHAPE | CASES[name])
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if path.endswith("norm.weight"):
                # Gemma's norms add the 1 by themselves. Its last makes up for the small table.
                large = 3 if path == "model.norm.weight" else 0
                values = (large if name.startswith("gemma") else 1) + 0.3 * noise
            elif name.startswith("gemma") and "embed_tokens" in path:
                values = 0.05 * noise  # It is scaled up, and would repeat itself through its head.
            else:
                values = noise * (0.3 if path.endswith(("bias", "lm_head.weight")) else 0.2)
            weight.copy_(values.to(precision))
    return model.float().eval()


def make_tokens(name: str, seed: int) -> torch.Tensor:
    """[2, T] random tokens; 40 of them where a window has to matter."""
    length = 40 if "window" in name else 24
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(_SHAPE["vocab_size"], (2, length), generator=generator)


def record(model: transformers.PreTrainedModel, tokens: torch.Tensor) -> dict[str, np.ndarray]:
    """The output of every sub-module, [B, T, E] each, the logits [B, T, V] and the tokens."""
    recorded = {"tokens": tokens.numpy().astype(np.int32)}
    modules = {"embed": model.model.embed_tokens, "final_norm": model.model.norm}
    for i, layer in enumerate(model.model.layers):
        modules[f"layers_{i}/attention"] = layer.self_attn
        modules[f"layers_{i}/mlp"] = layer.mlp
        modules[f"layers_{i}"] = layer

    def keep(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            recorded[name] = output.detach().float().numpy()

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    with torch.no_grad():
        recorded["logits"] = model(tokens).logits.float().numpy()
    for hook in hooks:
        hook.remove()
    return recorded


def greedy(
    model: transformers.PreTrainedModel, prompts: torch.Tensor, new_tokens: int = NEW_TOKENS
) -> tuple[np.ndarray, float]:
    """Greedy continuations [B, new_tokens], and the smallest gap between first and second logit."""
    output = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = torch.stack(output.logits).topk(2, dim=-1).values
    margin = float((best[..., 0] - best[..., 1]).min())
    return output.sequences[:, prompts.shape[1] :].numpy().astype(np.int32), margin


def main() -> None:
    """Writes the folders anew."""
    for name in sys.argv[1:] or CASES:
        for seed in range(100):
            model, tokens = build_model(name, seed), make_tokens(name, seed)
            new_ids, margin = greedy(model, tokens[:, :PROMPT_LENGTH])
            if margin > 1e-2 and all(len(set(row)) > NEW_TOKENS // 4 for row in new_ids):
                break  # no near-tie, and not stuck in a short loop
        expected = record(model, tokens)
        expected["new_ids"] = new_ids
        directory = HERE / name
        # One of them in shards.
        shard_size = "40KB" if name == "qwen3" else "1GB"
        model.to(torch.bfloat16).save_pretrained(directory, max_shard_size=shard_size)
        np.savez_compressed(directory / "expected.npz", **expected)
        size = sum(path.stat().st_size for path in directory.iterdir()) // 1024
        print(f"{name}: seed {seed}, margin {margin:.3f}, {size} kB")


if __name__ == "__main__":
    main()

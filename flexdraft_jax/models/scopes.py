"""The parts of a decoding step: scopes that its operations carry into a profile."""

import enum


class StepPart(enum.StrEnum):
    """Where an operation of a step belongs; of nested ones the innermost counts.

    Attributes:
        SHALLOW_LAYERS: candidates through the layers below the split.
        DRAFT_LAYERS: candidates through the others; in a parallel pass, with what mask tokens share
            with them.
        MASK_TOKENS: a draft pass; in a parallel pass, the attention that mask tokens have of their
            own.
        MASKS: who sees whom, and what scores become by that.
        LM_HEAD: of candidates and of mask tokens, with the norm before it.
        CALIBRATION: of the mask tokens' logits.
        DRAFTS: tokens and confidence of the next block, from its logits.
        ACCEPTANCE: the target's tokens, held against the drafts.
        CACHE_WRITE: of the candidates' keys and values.
    """

    SHALLOW_LAYERS = "shallow_layers"
    DRAFT_LAYERS = "draft_layers"
    MASK_TOKENS = "mask_tokens"
    MASKS = "masks"
    LM_HEAD = "lm_head"
    CALIBRATION = "calibration"
    DRAFTS = "drafts"
    ACCEPTANCE = "acceptance"
    CACHE_WRITE = "cache_write"

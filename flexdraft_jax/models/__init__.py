"""The target, the draft and the passes through both, as pure functions of parameters."""

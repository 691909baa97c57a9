"""All entries."""

import of_calls
import of_checkpoints
import of_files
import of_training
from trial import Entry

ENTRIES: list[Entry] = [
    *of_checkpoints.ENTRIES,
    *of_files.ENTRIES,
    *of_calls.ENTRIES,
    *of_training.ENTRIES,
]
__all__ = ["ENTRIES", "Entry"]

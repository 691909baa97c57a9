"""What the scripts print: answers to held-out prompts, timings, tables and coloured text."""

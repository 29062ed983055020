"""The work directory of a run: its files, checkpoints, metrics and lock."""

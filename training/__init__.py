"""Data, the one training loop, evaluation, and what a run leaves behind."""

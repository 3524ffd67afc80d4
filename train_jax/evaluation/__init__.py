"""Evaluation: evaluators during training, and of runs and public weights without training."""

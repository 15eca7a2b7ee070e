"""Evaluation: scores of a split, reports, files of predictions, and lm-eval's tasks."""

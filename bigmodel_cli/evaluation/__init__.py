"""How good a model is: reports, written predictions, and lm-eval's tasks."""

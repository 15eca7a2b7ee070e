"""Training: one loop for pretraining and finetuning."""

"""Text: running text, pairs and tables, and the tokenizers."""

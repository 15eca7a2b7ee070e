"""Text: running, in pairs and in tables, and the tokenizers."""

"""Images: where they are read, how they are changed while training."""

"""Text generation: sampling, beam search, and texts in and out."""

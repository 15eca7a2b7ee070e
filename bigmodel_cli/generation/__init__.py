"""Models that write: sampling, beam search, and texts in and out."""

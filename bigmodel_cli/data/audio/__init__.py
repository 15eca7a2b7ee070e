"""Sound: recordings to waves, waves to spectrograms."""

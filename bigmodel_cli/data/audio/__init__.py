"""Sound: recordings to waveforms, waveforms to spectrograms."""

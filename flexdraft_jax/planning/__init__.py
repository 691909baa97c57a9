"""What programs take on TPU slices that aren't there: compiled for them, counted, never run."""

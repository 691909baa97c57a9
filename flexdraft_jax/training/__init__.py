"""Training of targets and drafters, from prepared rows to exported weights."""

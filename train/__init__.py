"""Stage 2: the training of systems from a feature cache into a run folder."""

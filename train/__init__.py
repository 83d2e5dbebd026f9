"""Stage 2: a feature cache goes in, a run folder comes out."""

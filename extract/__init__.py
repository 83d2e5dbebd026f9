"""Stage 1: a corpus goes in, a feature cache comes out."""

"""Frozen encoders of speech and text, each giving an utterance what it gives it alone, whatever the batch."""

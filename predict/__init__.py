"""Trained heads put to use: a portable folder out of a run, and distributions for new speech."""

"""From the files of a release to a corpus of utterances with raw votes."""

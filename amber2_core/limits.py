"""What a heads folder may hold at most: more than that is refused before it is read."""

from __future__ import annotations

CONFIG_BYTES = 4 << 20  # of config.json
HEADER_BYTES = 8 << 20  # of what a safetensors file tells before its numbers
FOLDER_BYTES = 8 << 30  # of all members together, who are read into memory
MEMBERS = 1000
MODALITIES = 32
LAYERS = 1000  # of an encoder
NAME_LETTERS = 200  # of a system, an emotion, a modality or a feature set

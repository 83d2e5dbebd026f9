"""A speech recogniser of transformers, for what has no transcript."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from amber2_core.errors import ModelError
from amber2_extract.audio import resample
from amber2_extract.encoders.encoder import silence

from .encoding import Sound

# Whisper hears so many seconds at once; beyond them it needs time stamps to go on.
_AT_ONCE = 30.0


class Transcriber:
    """A recogniser on its device: CTC models such as wav2vec 2.0, and Whisper and its kin."""

    def __init__(self, model: str, *, device: str = "cpu") -> None:
        """Load a recogniser, an id of the hub or a folder.

        Raises:
            ModelError: it cannot be loaded, or recognises no speech.
        """
        import transformers

        self.name = model
        place = Path(model).expanduser()
        try:
            with silence():
                pipeline: Any = transformers.pipeline
                self._pipeline = pipeline(
                    "automatic-speech-recognition",
                    model=str(place) if place.is_dir() else model,
                    device=device,
                    trust_remote_code=False,
                )
        except Exception as problem:  # config, safetensors, tokenizer and hub errors have no common base
            line = (str(problem) or type(problem).__name__).strip().splitlines()[0]
            raise ModelError(f"Cannot transcribe by {model!r}: {line}") from None
        self._rate = int(self._pipeline.feature_extractor.sampling_rate)
        self._alone = threading.Lock()

    def transcript(self, sound: Sound) -> str:
        """What is said in a sound, as far as the recogniser can tell.

        Raises:
            AudioError: the sound's sampling rate cannot become the recogniser's.
        """
        waveform = resample(sound.samples, old_rate=sound.sampling_rate, new_rate=self._rate)
        is_long = self._pipeline.type == "seq2seq_whisper" and sound.seconds > _AT_ONCE
        settings = {"return_timestamps": True} if is_long else {}
        with self._alone, silence():
            found = self._pipeline({"raw": waveform, "sampling_rate": self._rate}, **settings)
        return str(found["text"]).strip()

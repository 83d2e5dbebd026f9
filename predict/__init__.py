"""Trained heads put to use: a portable folder out of a run, and distributions for new speech.

from amber2_predict import Predictor
predictor = Predictor.from_pretrained("heads/")
print(predictor.predict(waveform, 16_000, "I never said that.").scores)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .prediction import Prediction
    from .predictor import Predictor

__all__ = ["Prediction", "Predictor"]


def __getattr__(name: str) -> Any:
    """The two that most need, loaded with torch when they are asked for."""
    from importlib import import_module

    places = {"Predictor": ".predictor", "Prediction": ".prediction"}
    if name in places:
        return getattr(import_module(places[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""What every test stands on: no network, few threads, and where the real recordings are, if they are anywhere."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes is the machine's business, not the code's.
settings.register_profile("amber2", deadline=None)
settings.register_profile("few", settings.get_profile("amber2"), max_examples=10)
settings.load_profile("amber2")

# Set before any test imports torch or transformers, and inherited by the commands that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
# The tests' matrices are small: threads would mostly wait for each other, all the more on busy cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell lets what it starts in the background ignore Ctrl-C, which some tests send to themselves and to commands.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with real recordings and votes; whoever asks for it is skipped where there is none."""
    folder = os.environ.get("AMBER2_TEST_DATA", "")
    if not folder:
        pytest.skip("AMBER2_TEST_DATA is not set: it names the folder with the real recordings")
    path = Path(folder).expanduser().resolve()
    if not path.is_dir():
        pytest.fail(f"AMBER2_TEST_DATA={folder} is not a folder")
    return path


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up run folder with a grid, its cache beside it as c.h5: to be read, not to be written into."""
    from run_folders import GRID, Sketch, write_run

    place = tmp_path_factory.mktemp("shared")
    sketch = Sketch(count=120, grid=GRID, transcripts=[f"words {k}" for k in range(120)])
    return write_run(place / "run", sketch, cache=place / "c.h5")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need the real recordings, so that `-m "not recordings"` leaves them out."""
    for item in items:
        if "test_data" in getattr(item, "fixturenames", ()):
            item.add_marker("recordings")

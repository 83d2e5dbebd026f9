"""`amber2-doctor`: what a bug report needs and a user wants to know before a night, in ten lines.

Whatever loads a library of its own does so in a process of its own: a broken install is a line and no traceback.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from amber2_core.command import INCOMPLETE, Command, command_body
from amber2_core.files import cache_folder

Record = dict[str, Any]  # JSON values; "problem" in words where there is one

SOFTWARE = ("torch", "torchaudio", "transformers", "soundfile", "av", "numpy", "h5py", "pandas")
PATIENCE = 300.0  # seconds: loading libraries from a network folder may take minutes
GIB = 2**30


@click.command(cls=Command)
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="The cache folder. [default: AMBER2_CACHE_DIR, else ./cache]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@command_body
def doctor(cache_dir: Path | None, as_json: bool) -> int | None:
    """Look at this machine and what is installed: what to tell in a bug report, and to know before a long run.

    The exit code is 3 when something is not as it must be: a library that does not load, a folder that is not there.
    """
    record = examine(cache_folder(cache_dir))
    click.echo(json.dumps(record, indent=2, ensure_ascii=False) if as_json else "\n".join(describe(record)))
    return INCOMPLETE if problems(record) else None


def examine(cache_dir: Path) -> Record:
    """All that is found, by what it is about; nothing is left behind in the cache folder."""
    torch = _apart("torch_here")
    return {
        "amber2": {"version": _version("amber2"), "python": platform.python_version(), "system": platform.platform()},
        "software": {name: found for name in SOFTWARE if (found := _version(name))},
        "torch": torch,
        "together": _apart("audio_here"),
        "transformers": _apart("transformers_here"),
        "memory": memory(),
        "disk": disk(cache_dir),
        "locks": locks(cache_dir),
        "corpora": corpora(os.environ),
    }


def describe(record: Record) -> list[str]:
    """The lines for people."""
    own, torch, free, place = record["amber2"], record["torch"], record["memory"], record["disk"]
    kinds = {True: "multiplies in bf16", False: "does not multiply in bf16"}
    devices = [f"{device['name']} ({kinds[device['bf16']]})" for device in torch.get("devices", ())]
    ready = "torch and torchaudio load together, and resample"
    limits = f", {free['limit'] / GIB:.1f} GiB by ulimit -v" if free["limit"] else ""
    places = [f"{name} at {one['root']}{_told(one)}" for name, one in record["corpora"].items()]
    return [
        f"amber2      {own['version']}, Python {own['python']}, {own['system']}",
        "software    " + ", ".join(f"{name} {found}" for name, found in record["software"].items()),
        "devices     " + (torch["problem"] or ", ".join(devices)),
        "threads     " + (torch["problem"] or f"{torch['threads']} of torch, {os.cpu_count()} cores{_omp()}"),
        "products    " + (torch["problem"] or torch["products"]),
        "audio       " + (record["together"]["problem"] or ready),
        "encoders    " + (record["transformers"]["problem"] or "transformers loads"),
        f"memory      {free['free'] / GIB:.1f} of {free['total'] / GIB:.1f} GiB free{limits}",
        f"cache       {place['folder']}: {place['free'] / GIB:.1f} GiB free, locks: {record['locks']['found']}"
        + _told(place),
        "corpora     " + ("; ".join(places) or "no root is set (AMBER2_<CORPUS>_ROOT), and none lies in ./corpora"),
    ]


def problems(record: Record) -> list[str]:
    """What is not as it must be, in words."""
    parts = [record[name] for name in ("torch", "together", "transformers", "disk")]
    return [part["problem"] for part in [*parts, *record["corpora"].values()] if part["problem"]]


# --- what can be seen without a library ---


def memory() -> Record:
    """Bytes free and in all, and of the address space that this process may have, 0: as much as there is."""
    import resource

    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    free = page * os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in os.sysconf_names else total
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    try:  # what is cached is free as well
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        pass
    return {"free": free, "total": total, "limit": 0 if limit == resource.RLIM_INFINITY else limit}


def disk(folder: Path) -> Record:
    """Bytes free where the cache folder is, or will be made."""
    there = _existing(folder)
    writable = there.is_dir() and os.access(there, os.W_OK)
    return {
        "folder": str(folder),
        "free": shutil.disk_usage(there).free,
        "problem": "" if writable else f"{there} cannot be written",
    }


def locks(folder: Path) -> Record:
    """Whether the file system of the cache folder has locks; where it has none, commands work with a warning."""
    try:
        import fcntl

        with tempfile.TemporaryFile(dir=_existing(folder)) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, ImportError) as problem:
        return {"found": f"none ({getattr(problem, 'strerror', None) or problem})"}
    return {"found": "work"}


def corpora(environment: Mapping[str, str]) -> Record:
    """The corpora whose root is set, or that lie where one is looked for."""
    from amber2_data.corpora.registry import READERS

    found = {}
    for name in READERS:
        said = environment.get(f"AMBER2_{name.upper()}_ROOT")
        root = Path(said or Path("corpora") / name).expanduser()
        if said or root.exists():
            found[name] = {"root": str(root), "problem": "" if root.exists() else f"{root} does not exist"}
    return found


# --- what loads a library, in a process of its own ---


def torch_here() -> Record:
    """Devices and whether they multiply in bfloat16, threads, and what multiplies on the processor."""
    import torch

    from amber2_core.devices import one_dnn_is_exact

    own = [there for name, there in torch.cpu.get_capabilities().items() if "bf16" in name]  # as the processor says
    devices = [{"name": "cpu", "bf16": any(own)}]
    for number in range(torch.cuda.device_count()):
        half = torch.ones(8, 8, dtype=torch.bfloat16, device=f"cuda:{number}")
        with torch.cuda.device(number):
            native = torch.cuda.is_bf16_supported(including_emulation=False) and bool((half @ half == 8).all())
        devices.append({"name": f"cuda:{number} {torch.cuda.get_device_name(number)}", "bf16": native})
    if torch.backends.mps.is_available():
        half = torch.ones(8, 8, dtype=torch.bfloat16, device="mps")
        devices.append({"name": "mps", "bf16": bool((half @ half == 8).all())})
    has_mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    products = "MKL" if has_mkl else "torch's own BLAS"
    if one_dnn_is_exact():
        products = "oneDNN, exact in single precision"
    return {"devices": devices, "threads": torch.get_num_threads(), "products": f"{products}, on processors"}


def audio_here() -> Record:
    """Load torch and torchaudio together, and resample a second."""
    import numpy as np

    from .audio import resample

    noise = np.random.default_rng(0).standard_normal(8_000).astype(np.float32)
    return {"samples": len(resample(noise, old_rate=8_000, new_rate=16_000))}


def transformers_here() -> Record:
    """Load what encoders are made of."""
    from transformers import AutoModel, AutoTokenizer

    from .encoders import text, waveform

    return {"loaded": [one.__name__ for one in (AutoModel, AutoTokenizer, text, waveform)]}


PROBES: Mapping[str, Callable[[], Record]] = {
    probe.__name__: probe for probe in (torch_here, audio_here, transformers_here)
}


def _apart(probe: str) -> Record:
    """What a probe finds in a process of its own, with "problem": why it found nothing, or ""."""
    watched = "from amber2_core.devices import watch_loading; watch_loading()"
    code = f"{watched}; import json; from {__name__} import PROBES; print(json.dumps(PROBES[{probe!r}]()))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
            # not what lies in the folder where the user happens to be
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        return {"problem": f"cannot be looked at ({problem})"}
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        return {"problem": said[-1].strip() if said else f"ended with {done.returncode}"}
    record: Record = json.loads(done.stdout.splitlines()[-1])
    return {**record, "problem": ""}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one around it that is there."""
    return next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())


def _told(part: Record) -> str:
    return f" ({part['problem']})" if part["problem"] else ""


def _omp() -> str:
    said = os.environ.get("OMP_NUM_THREADS")
    return f", OMP_NUM_THREADS={said}" if said else ""

"""Heads folders on a hub of models: pushed and fetched as files, by the names that a folder knows and no others."""

from __future__ import annotations

import logging
import re
from fnmatch import fnmatch
from pathlib import Path

from amber2_core import limits
from amber2_core.errors import RunFolderError

ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w./-]{1,100})?", re.ASCII)
FETCHED = ["config.json", "README.md", "heads-*.safetensors"]
# replaced by a push, also where the new folder has none of the name
OWN = [*FETCHED, "model.onnx", "description.json"]
_log = logging.getLogger(__name__)


def check_id(name: str) -> None:
    """RunFolderError: a name under which nothing can be pushed."""
    if not ID.fullmatch(name) or "@" in name or ".." in name or "--" in name:
        raise RunFolderError(f"Bad id {name!r}, expected one such as owner/name")


def push(folder: Path, name: str, *, public: bool = False) -> str:
    """Bring a heads folder to the hub, under a new id or over what an earlier push left there; its address.

    A model that is made for it is private unless it is to be public.

    Raises:
        RunFolderError: the hub cannot be reached, or does not let us; or the id is public, and that was not asked for.
    """
    import huggingface_hub

    check_id(name)
    try:
        api = huggingface_hub.HfApi()
        address = api.create_repo(name, private=not public, exist_ok=True)
        if not public and api.model_info(name).private is False:
            raise RunFolderError(f"{name} is there already and public: push with --public, or under another id")
        api.upload_folder(
            repo_id=name, folder_path=folder, commit_message="Export heads with amber2", allow_patterns=OWN,
            delete_patterns=OWN,
        )  # fmt: skip
        return str(address)
    except RunFolderError:
        raise
    except Exception as problem:  # the hub's client raises its HTTP library's errors, which change with its versions
        raise RunFolderError(f"Cannot push to {name} ({_reason(problem)}); {folder} is complete") from None


def fetched(source: str) -> Path:
    """The folder that the hub's client keeps of ``owner/name`` or ``owner/name@revision``, fetched if need be.

    Where the hub cannot be reached, what was fetched before is taken.

    Raises:
        RunFolderError: there is none, or more than `limits` allow.
    """
    import huggingface_hub

    name, _, revision = source.partition("@")
    try:
        try:
            told = huggingface_hub.HfApi().model_info(name, revision=revision or None, files_metadata=True)
        except Exception as problem:
            _log.info("%s: what was fetched before is taken (%s)", source, _reason(problem))
            local = True
        else:
            local = False
            _check_sizes(source, {file.rfilename: file.size or 0 for file in told.siblings or ()})
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision or None, allow_patterns=FETCHED, local_files_only=local
            )
        )
    except RunFolderError:
        raise
    except Exception as problem:
        raise RunFolderError(
            f"No heads at {source}: there is no such folder, and the hub gives none ({_reason(problem)})"
        ) from None


def held_in(folder: Path) -> Path:
    """The folder within which the client's links lead: all that it keeps of one model."""
    return folder.parents[1] if folder.parent.name == "snapshots" else folder


def _check_sizes(source: str, sizes: dict[str, int]) -> None:
    wanted = [size for name, size in sizes.items() if any(fnmatch(name, pattern) for pattern in FETCHED)]
    if len(wanted) > limits.MEMBERS + 2 or sum(wanted) > limits.FOLDER_BYTES:
        raise RunFolderError(f"{source} holds {len(wanted)} files, {sum(wanted)} bytes: too much, nothing is fetched")
    if "config.json" not in sizes or sizes["config.json"] > limits.CONFIG_BYTES:
        raise RunFolderError(f"{source} holds no config.json of heads, nothing is fetched: make one with export-heads")


def _reason(problem: Exception) -> str:
    return (str(problem) or type(problem).__name__).strip().splitlines()[0]

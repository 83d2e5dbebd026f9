"""Heads on a hub, which a folder stands in for: what is pushed comes back, and what is too much is not fetched."""

from __future__ import annotations

import fnmatch
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from heads_folders import inputs, member, write_heads_folder

from amber2_core import limits
from amber2_core.errors import RunFolderError
from amber2_predict.folder import read_folder
from amber2_predict.hub import check_id, push

Names = Sequence[str] | None


@dataclass
class Hub:
    """The hub and its client: repositories are folders, and what is fetched are links into blobs, as the client's."""

    place: Path
    private: dict[str, bool] = field(default_factory=dict)
    reached: bool = True
    fetched: list[str] = field(default_factory=list)

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
        self.answer()
        assert exist_ok
        self.private.setdefault(name, private)
        (self.place / name).mkdir(parents=True, exist_ok=True)
        return f"https://hub/{name}"

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, commit_message: str, allow_patterns: Names, delete_patterns: Names
    ) -> None:
        self.answer()
        for old in matching(self.place / repo_id, delete_patterns):
            old.unlink()
        for file in matching(folder_path, allow_patterns):
            shutil.copy(file, self.place / repo_id)

    def model_info(self, name: str, *, revision: str | None = None, files_metadata: bool = False) -> Any:
        self.answer()
        if name not in self.private:
            raise ValueError(f"Repository Not Found: {name}\nand much more")
        files = [SimpleNamespace(rfilename=x.name, size=x.stat().st_size) for x in (self.place / name).iterdir()]
        return SimpleNamespace(private=self.private[name], siblings=files)

    def snapshot_download(
        self, name: str, *, revision: str | None, allow_patterns: Names, local_files_only: bool
    ) -> str:
        kept = self.place / "client" / f"models--{name.replace('/', '--')}"
        snapshot = kept / "snapshots" / (revision or "main")
        if local_files_only:
            if not snapshot.is_dir():
                raise FileNotFoundError("nothing was fetched before")
            return str(snapshot)
        self.answer()
        for folder in (snapshot, kept / "blobs"):
            folder.mkdir(parents=True, exist_ok=True)
        for file in matching(self.place / name, allow_patterns):
            blob = kept / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
            shutil.copy(file, blob)
            (snapshot / file.name).unlink(missing_ok=True)
            (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
            self.fetched.append(file.name)
        return str(snapshot)

    def answer(self) -> None:
        if not self.reached:
            raise ConnectionError("no route to the hub\nand much more")


def matching(folder: Path, patterns: Names) -> list[Path]:
    return [x for x in folder.iterdir() if any(fnmatch.fnmatch(x.name, pattern) for pattern in patterns or ())]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def test_what_is_pushed_is_private_and_predicts_when_it_is_fetched(hub: Hub, tmp_path: Path) -> None:
    folder = write_heads_folder(tmp_path / "heads", member(0), member(1), digests=True)
    assert push(folder, "lab/heads") == "https://hub/lab/heads"
    assert hub.private == {"lab/heads": True}
    for source in ("lab/heads", "lab/heads@v1"):
        back, own = read_folder(source), read_folder(folder)
        assert back.config == own.config
        for head, probs in own.probs(inputs()).items():
            assert torch.equal(back.probs(inputs())[head], probs)


def test_a_later_push_replaces_what_an_earlier_one_left(hub: Hub, tmp_path: Path) -> None:
    push(write_heads_folder(tmp_path / "a", member(0), member(1)), "lab/heads")
    (hub.place / "lab/heads" / ".gitattributes").touch()
    push(write_heads_folder(tmp_path / "b", member(2)), "lab/heads")
    assert sorted(x.name for x in (hub.place / "lab/heads").iterdir()) == [
        ".gitattributes", "config.json", "heads-1.safetensors",
    ]  # fmt: skip


def test_what_is_public_is_not_pushed_to_unless_that_was_asked_for(hub: Hub, tmp_path: Path) -> None:
    folder = write_heads_folder(tmp_path / "heads")
    push(folder, "lab/open", public=True)
    assert hub.private == {"lab/open": False}
    with pytest.raises(RunFolderError, match="lab/open is there already and public: push with --public"):
        push(folder, "lab/open")


def test_only_files_of_heads_are_pushed_and_fetched(hub: Hub, tmp_path: Path) -> None:
    folder = write_heads_folder(tmp_path / "heads")
    (folder / "notes.txt").touch()
    push(folder, "lab/heads")
    assert not (hub.place / "lab/heads/notes.txt").exists()
    for name in ("pytorch_model.bin", "modeling.py", "model.onnx"):
        (hub.place / "lab/heads" / name).touch()
    read_folder("lab/heads")
    assert sorted(hub.fetched) == ["config.json", "heads-1.safetensors"]


def test_without_a_way_to_the_hub_what_was_fetched_before_is_taken(hub: Hub, tmp_path: Path) -> None:
    folder = write_heads_folder(tmp_path / "heads")
    push(folder, "lab/heads")
    read_folder("lab/heads")
    hub.reached = False
    read_folder("lab/heads")
    with pytest.raises(RunFolderError, match=r"Cannot push to lab/heads \(no route to the hub\); .* is complete"):
        push(folder, "lab/heads")
    with pytest.raises(RunFolderError, match=r"No heads at lab/other: .* \(nothing was fetched before\)") as error:
        read_folder("lab/other")
    assert "\n" not in str(error.value)


def test_what_is_too_much_or_no_heads_is_not_fetched(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(write_heads_folder(tmp_path / "heads"), "lab/heads")
    with monkeypatch.context() as patched:
        patched.setattr(limits, "FOLDER_BYTES", 100)
        with pytest.raises(RunFolderError, match="too much, nothing is fetched"):
            read_folder("lab/heads")
    (hub.place / "lab/heads/config.json").unlink()
    with pytest.raises(RunFolderError, match=r"lab/heads holds no config\.json of heads"):
        read_folder("lab/heads")
    assert hub.fetched == []


@pytest.mark.parametrize("name", ["", "lab", "a/b/c", "../x", "lab/..", "lab/x@main", "/etc/passwd", "lab/x y", "-/x"])
def test_an_id_is_owner_and_name(name: str) -> None:
    with pytest.raises(RunFolderError, match="expected one such as owner/name"):
        check_id(name)


def test_a_source_that_is_neither_folder_nor_id_is_one_line(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for source in (tmp_path / "nothing", tmp_path / "file", "no such folder", "a/b/c"):
        with pytest.raises(RunFolderError, match=r"No heads folder at .*: make one with export-heads, or give an id"):
            read_folder(source)

"""Which files of a folder are pictures to learn from, and which are left out, and why."""

import os
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from .picture_files import picture_endings
from .pictures import is_marked

REPORT = "report.html"  # of a gallery
# Folders that systems keep beside pictures: thumbnails, resource forks, bins.
SYSTEM_FOLDERS = {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
# Files beside pictures that are none themselves, and that nobody would train on.
BESIDE = {".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".toml", ".yaml", ".yml", ".html", ".xml", ".ini", ".db"}
PARTS = {
    "train": ("train", "training", "trn"),
    "test": ("test", "testing", "tst"),
    "validation": ("validation", "valid", "val", "dev"),
}
NAMED = 3  # examples in a message


@dataclass
class Found:
    """The pictures below a folder, and what was left out.

    Attributes:
        paths: the pictures, in the order of their paths.
        skipped: reasons, and the files or folders that have them.
    """

    paths: list[Path] = field(default_factory=list)
    skipped: dict[str, list[Path]] = field(default_factory=dict)

    def leave_out(self, reason: str, path: Path) -> None:
        """Count a file or folder as left out."""
        self.skipped.setdefault(reason, []).append(path)

    def notes(self, root: Path) -> list[str]:
        """Return a line for each reason, with a count and some names."""
        lines = []
        for reason, paths in self.skipped.items():
            names = ", ".join(_shown(path, root) for path in paths[:NAMED])
            more = ", ..." if len(paths) > NAMED else ""
            kinds = Counter(path.suffix.lower() or "no ending" for path in paths)
            counted = f" ({', '.join(f'{n} {kind}' for kind, n in kinds.most_common(5))})" if "ending" in reason else ""
            lines.append(f"left out of {root}: {len(paths)} {reason}{counted}: {names}{more}")
        return lines


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def find_pictures(folder: Path, least: int, *, samples: bool = False) -> Found:
    """Find the pictures below a folder: links are followed, without loops; run folders and galleries are no data.

    Each picture is taken once, under its own name if it has one in the folder. Hidden files and folders, and those that
    systems keep beside pictures, are passed over without a word.

    Args:
        folder: the folder.
        least: how many there must be.
        samples: whether samples of this program are meant; else they are skipped where there are other pictures.

    Raises:
        UserError: there are fewer.
    """
    found = Found()
    _walk(folder, found)
    if not samples:
        own = [path for path in found.paths if is_marked(path)]
        if len(own) < len(found.paths):
            for path in own:
                found.leave_out("pictures that this program drew", path)
            found.paths = sorted(set(found.paths) - set(own))
    found.paths.sort()
    if len(found.paths) < least:
        notes = "".join(f"; {line}" for line in found.notes(folder))
        raise UserError(
            f"{folder} holds {len(found.paths)} pictures, at least {least} are needed; known endings are "
            f"{', '.join(sorted(picture_endings()))}{notes}"
        )
    return found


def _walk(root: Path, found: Found) -> None:
    """Find all pictures; what is there itself comes before what links lead to, so that a link renames nothing."""
    seen_folders, seen_files = set[str](), set[str]()
    folders, linked_folders, linked_files = deque([root]), deque[Path](), list[Path]()
    while folders or linked_folders:
        folder = folders.popleft() if folders else linked_folders.popleft()
        real = os.path.realpath(folder)
        if real in seen_folders:
            found.leave_out("folders that are there already under another name", folder)
            continue
        if folder != root and _is_ours(folder):
            found.leave_out("folders that this program made", folder)
            continue
        seen_folders.add(real)
        for entry in _entries(folder, found):
            path, suffix = folder / entry.name, Path(entry.name).suffix.lower()
            if entry.is_symlink() and not path.exists():
                found.leave_out("links to nothing", path)
            elif entry.is_dir():
                (linked_folders if entry.is_symlink() else folders).append(path)
            elif suffix not in picture_endings():
                if suffix not in BESIDE:
                    found.leave_out("files whose ending is no picture's", path)
            elif entry.is_symlink():
                linked_files.append(path)
            else:
                found.paths.append(path)
                seen_files.add(os.path.join(real, entry.name))
    for path in linked_files:
        real = os.path.realpath(path)
        if real in seen_files:
            found.leave_out("links to pictures that are there already", path)
        else:
            found.paths.append(path)
            seen_files.add(real)


def _entries(folder: Path, found: Found) -> list[os.DirEntry[str]]:
    """Return what lies in a folder by name, without hidden files and those of systems."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        found.leave_out("folders that cannot be opened", folder)
        return []
    return [entry for entry in entries if entry.name[0] != "." and entry.name.lower() not in SYSTEM_FOLDERS]


def _is_ours(folder: Path) -> bool:
    """Return whether a folder is a run or a gallery."""
    try:
        if (folder / "recipe.toml").exists():
            return any((folder / name).exists() for name in ("weights.safetensors", "state", "environment.json"))
        if not (folder / REPORT).exists():
            return False
        return b"ncode_gen" in (folder / REPORT).read_bytes()
    except OSError:
        return False


def split_folders(root: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the folders of a split, by "train", "test" and "validation", with notes for the user.

    The customary names are understood, in capital letters too. Without a folder of test pictures those of validation
    are the test pictures. Where there is no train folder, or nothing to test with, there is no split.

    Raises:
        UserError: two folders have the same meaning.
    """
    found: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        part = next((part for part, names in PARTS.items() if path.name.lower() in names), None)
        if part is None or not path.is_dir():
            continue
        if part in found:
            raise UserError(f"{found[part]} and {path} both mean the {part} pictures; leave one of them")
        found[part] = path
    if not found:
        return {}, []
    if "train" not in found or len(found) == 1:
        there = ", ".join(path.name for path in found.values())
        missing = "test or validation" if "train" in found else "train"
        return {}, [f"{root} has {there} but no folder {missing}: its pictures are split by their paths instead"]
    notes = []
    if "test" not in found:
        found["test"] = found.pop("validation")
        notes.append(f"{root} has no folder of test pictures: those of {found['test'].name} are used as such")
    others = [path.name for path in sorted(root.iterdir()) if path.is_dir() and path not in found.values()]
    others = [name for name in others if not name.startswith(".") and name.lower() not in SYSTEM_FOLDERS]
    used = ", ".join(path.name for path in found.values())
    if others:
        notes.append(
            f"only {used} of {root} are used, not {', '.join(others[:NAMED])}{', ...' * (len(others) > NAMED)}"
        )
    return found, notes

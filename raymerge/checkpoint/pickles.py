"""Which files make up a checkpoint that torch has pickled. By name: nothing is unpickled here."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from raymerge.checkpoint.catalog import PICKLED
from raymerge.checkpoint.folder import Folder
from raymerge.checkpoint.index import parse_index
from raymerge.errors import SourceError

PICKLED_INDEX = "pytorch_model.bin.index.json"
_SINGLE = "pytorch_model.bin"
_ADAPTER = "adapter_model.bin"
_NUMBERED = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.bin|\.pt|\.pth)")


def read_pickled_map(
    folder: Folder, sizes: Mapping[str, int], *, source: str
) -> Mapping[str, str] | None:
    """The index's weight map, or None where there is no index."""
    if PICKLED_INDEX not in sizes:
        return None
    raw = folder.read(PICKLED_INDEX, 0, sizes[PICKLED_INDEX])
    return parse_index(raw, source=source, file=PICKLED_INDEX, endings=PICKLED)


def choose_pickled(
    names: Collection[str], weight_map: Mapping[str, str] | None, *, source: str
) -> list[str]:
    """Names of the files that make up a pickled checkpoint, sorted.

    Args:
        names: Files of the folder, without those that training leaves beside the weights.
        weight_map: The index's.
        source: Label, for messages.

    Raises:
        SourceError: There are none, some are absent, or several could be meant.
    """
    if weight_map is not None:
        files = sorted(set(weight_map.values()))
        _require(files, names, f"{PICKLED_INDEX} names them", source)
        if _SINGLE in names and _SINGLE not in files:
            why = f"lies beside {PICKLED_INDEX}, which does not name it; remove the stale one"
            raise SourceError(f"{source}: {_SINGLE} {why}", source=source, file=_SINGLE)
        return files
    if _SINGLE in names:
        return [_SINGLE]
    found = sorted(name for name in names if name.endswith(PICKLED))
    if found == [_ADAPTER]:
        why = "is a LoRA adapter, not a model; only models are converted"
        raise SourceError(f"{source}: {_ADAPTER} {why}", source=source, file=_ADAPTER)
    if len(found) == 1 and not _NUMBERED.fullmatch(found[0]):
        return found
    sets = {(m[1], int(m[3]), m[4]) for m in map(_NUMBERED.fullmatch, found) if m}
    if len(sets) == 1:
        ((stem, total, ending),) = sets
        files = [f"{stem}-{i:05}-of-{total:05}{ending}" for i in range(1, total + 1)]
        _require(files, names, "by their names they belong together", source)
        return files
    what = (
        f"{len(found)} pickled files ({', '.join(found[:3])}...)" if found else "no pickled weights"
    )
    how = "give the one to convert" if found else "give a folder or file that does"
    raise SourceError(f"{source}: there are {what} and no {PICKLED_INDEX}; {how}", source=source)


def _require(files: Sequence[str], names: Collection[str], why: str, source: str) -> None:
    missing = [file for file in files if file not in names]
    if missing:
        raise SourceError(
            f"{source}: {len(missing)} of {len(files)} files are missing, {missing[0]} first; "
            f"{why}. Fetch the checkpoint again.",
            source=source,
            file=missing[0],
        )

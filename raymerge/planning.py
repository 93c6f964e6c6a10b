"""From a recipe and its sources' headers to a plan: the one place where both are read."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from raymerge.options import RunOptions, checked_access

if TYPE_CHECKING:
    from raymerge.checkpoint.catalog import Catalog
    from raymerge.machine import Machine
    from raymerge.plan.build import Plan
    from raymerge.recipe import Recipe, SourceRef
    from raymerge.storage import SourceFolder
    from raymerge.tokenizer.files import TokenizerFiles

T = TypeVar("T")


class Shelf:
    """Folders, catalogs and tokenizers of sources, each read once however many plans ask."""

    def __init__(self) -> None:
        self._kept: dict[object, Any] = {}
        self._locks: dict[object, Lock] = {}

    def once(self, key: object, read: Callable[[], T]) -> T:
        """What is kept under a key, read first if it is not there. An error is not kept."""
        with self._locks.setdefault(key, Lock()):
            if key not in self._kept:
                self._kept[key] = read()
        found: T = self._kept[key]
        return found


def plan_merge(
    recipe: Recipe,
    *,
    out: str | None,
    machine: Machine,
    options: RunOptions,
    shelf: Shelf | None = None,
    afar: bool | None = None,
) -> Plan:
    """Read the headers of a recipe's sources, wherever they lie, and plan.

    Args:
        recipe: What to merge.
        out: Path or URL of the destination, if it is known.
        machine: What the merge will run on.
        options: Of the call.
        shelf: What other plans have read.
        afar: Plan as if sources and destination were in an object store, or as if they were not;
            None goes by where they are.
    """
    shelf = shelf or Shelf()
    from raymerge.checkpoint.adapter import holds_adapter, read_adapter
    from raymerge.checkpoint.catalog import read_beside, read_catalog
    from raymerge.checkpoint.config_diff import config_differences
    from raymerge.plan.build import PlanOptions, build
    from raymerge.storage import destination, open_folder
    from raymerge.tokenizer.files import read_tokenizer_files

    refs = recipe.read
    access = checked_access(options, [ref.location for ref in refs], out)

    def opened(ref: SourceRef) -> SourceFolder:
        return shelf.once(
            ("folder", ref.location, ref.revision, ref.label),
            lambda: open_folder(
                ref.location, label=ref.label, revision=ref.revision, access=access
            ),
        )

    folders = {ref.label: opened(ref) for ref in refs}
    keys = {ref.label: (ref.location, ref.revision, ref.label) for ref in refs}
    adapters = {adapter.label for adapter in recipe.adapters}
    lenders = {lender.label for lender in recipe.lenders}

    def read(label: str) -> Catalog:
        folder = folders[label]
        if label in lenders:
            return shelf.once(("beside", *keys[label]), lambda: read_beside(folder, label=label))
        is_adapter = label in adapters or holds_adapter(folder.sizes())
        read_one = read_adapter if is_adapter else read_catalog
        return shelf.once(
            ("catalog", *keys[label], is_adapter), lambda: read_one(folder, label=label)
        )

    with ThreadPoolExecutor(len(folders)) as pool:
        catalogs = list(pool.map(read, folders))

    def tokenizer_of(catalog: Catalog) -> TokenizerFiles:
        label = catalog.label
        return shelf.once(
            ("tokenizer", *keys[label]),
            lambda: read_tokenizer_files(folders[label], catalog.side_files, label=label),
        )

    limits = PlanOptions(
        memory_bytes=machine.memory_bytes,
        threads=machine.threads,
        device=machine.device,
        shard_bytes=options.get("shard_bytes"),
        device_memory_bytes=options.get("device_memory_bytes"),
        whole_shards=(out is not None and not fills_together(out)) if afar is None else afar,
        uploads=(out is not None and destination(out).is_objects) if afar is None else afar,
        tile_elements=options.get("tile_elements"),
        stats=options.get("stats", False),
        # Of local files: the kernel has them cached after the first sweep, and a copy
        # from there into a core's cache moves fewer bytes than memory of our own (TIES: 10 % less).
        hold=False,
        remote=any(map(_is_fetched, folders.values())) if afar is None else afar,
    )
    models = [catalog for catalog in catalogs if catalog.lora is None]
    merged = [catalog for catalog in models if catalog.label not in lenders]
    return build(
        recipe,
        catalogs,
        limits,
        remarks=config_differences(merged, folders),
        tokenizer_files={catalog.label: tokenizer_of(catalog) for catalog in models},
    )


def _is_fetched(folder: SourceFolder) -> bool:
    """Whether the files of a source are read by range over a network."""
    from raymerge.storage.posix import PosixFolder

    return not isinstance(folder, PosixFolder) and folder.copied is None


def fills_together(out: str) -> bool:
    """Whether several units may fill one file of the destination."""
    from raymerge.storage.mounts import shares_files
    from raymerge.storage.urls import Scheme, destination

    where = destination(out)
    return where.scheme is Scheme.FILE and shares_files(where.path)

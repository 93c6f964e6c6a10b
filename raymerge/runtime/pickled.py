"""Checkpoints that torch has pickled: `pytorch_model.bin` and its kind, read without running them.

A pickle is a program. torch's `weights_only` unpickler knows a list of harmless calls and refuses
any other; it is all that ever reads one here. The file is mapped, not loaded: its tensors are pages
of the file, which the kernel takes back when memory is short. Two kinds of file cannot be mapped
and are read whole, one at a time: those of before torch 1.6, and archives that somebody compressed.
A mapped file must not be cut short while it is read: the kernel would end the process.
"""

from __future__ import annotations

import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import PickleError
from typing import TYPE_CHECKING, Any

from raymerge.checkpoint.catalog import WEIGHTS, Catalog, index_faults, read_config
from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.header import TensorEntry
from raymerge.checkpoint.pickles import PICKLED_INDEX, choose_pickled, read_pickled_map
from raymerge.errors import SourceError
from raymerge.kernels.tile import Bytes
from raymerge.plan.needs import COPY_BYTES
from raymerge.runtime.side_files import why_left_out
from raymerge.storage.posix import PosixFolder
from raymerge.units import format_bytes

if TYPE_CHECKING:
    from torch import Tensor

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which training loops keep the weights beside the rest of their state."""
_ZIP_MAGIC = b"PK\x03\x04"
_DTYPES = {dtype.torch_name: dtype for dtype in DType}
# What torch and Python raise at a file that is cut short, forged or no checkpoint at all.
_MALFORMED = (
    PickleError,
    zipfile.BadZipFile,
    struct.error,
    RuntimeError,
    EOFError,
    LookupError,
    AttributeError,
    TypeError,
    ValueError,
    ArithmeticError,
    AssertionError,
    ImportError,
)
_GLOBAL = re.compile(r"GLOBAL (\S+)")
_REASON = re.compile(r"WeightsUnpickler error:\s*(.+)")


@dataclass(frozen=True, slots=True)
class PickledSource:
    """A pickled checkpoint as far as its pickles tell; no weight has been read."""

    folder: PosixFolder
    catalog: Catalog
    """Each entry's file is right, and its range `[0, bytes)` means nothing."""
    shared: Mapping[str, str]
    """Names that are a second name of a tensor, and the name that stands first."""
    notes: tuple[str, ...]

    def tensors(self, file: str) -> dict[str, Tensor]:
        """The tensors of one file, mapped where that can be; drop them before the next file."""
        tensors, _ = _load(self.folder, file, source=self.catalog.label)
        return tensors


def read_pickled(folder: PosixFolder, *, label: str) -> PickledSource:
    """Find the files and read what they say about their tensors, one after another.

    Raises:
        SourceError: No such checkpoint, several, a malformed or incomplete one, or a file that
            would have to run code.
    """
    sizes = folder.sizes()
    weight_map = read_pickled_map(folder, sizes, source=label)
    weights = [name for name in sizes if why_left_out(name, 0) is None]
    files = choose_pickled(weights, weight_map, source=label)
    pins = {file: folder.pin(file) for file in files}
    tensors: dict[str, TensorEntry] = {}
    shared: dict[str, str] = {}
    notes: list[str] = []
    for file in files:
        entries, second, said = _read_names(folder, file, label)
        for entry in entries:
            _add(tensors, entry, label)
        shared |= second
        notes.extend(said)
    if weight_map is not None:
        for fault in index_faults(tensors, weight_map, index=PICKLED_INDEX):
            raise SourceError(f"{label}: {fault}", source=label, file=PICKLED_INDEX)
    side_files = tuple(sorted(name for name in sizes if not name.endswith(WEIGHTS)))
    catalog = Catalog(
        label=label,
        location=folder.location,
        tensors=tensors,
        pins=pins,
        config=read_config(folder, sizes, source=label),
        side_files=side_files,
        side_pins={name: folder.pin(name) for name in side_files},
    )
    return PickledSource(folder, catalog, shared, tuple(notes))


def _read_names(
    folder: PosixFolder, file: str, source: str
) -> tuple[list[TensorEntry], dict[str, str], tuple[str, ...]]:
    # A function of its own: a file that was read whole has to go before the next one comes.
    loaded, notes = _load(folder, file, source=source)
    entries = [_entry(name, tensor, file, source) for name, tensor in loaded.items()]
    return entries, _shared(loaded), notes


def _add(tensors: dict[str, TensorEntry], entry: TensorEntry, source: str) -> None:
    first = tensors.setdefault(entry.name, entry)
    if first is not entry:
        raise SourceError(
            f"{source}: tensor {entry.name!r} lies in both {first.file} and {entry.file}; remove "
            "the stale file, or join what was split over several GPUs first",
            source=source,
            tensor=entry.name,
            file=entry.file,
        )


def pieces_of(tensor: Tensor) -> Iterator[Bytes]:
    """A tensor's bytes in the order of its indices, at most a few MB at a time, however it lies."""
    import torch

    if tensor.is_contiguous():
        flat = tensor.reshape(-1).view(torch.uint8).numpy()
        for start in range(0, flat.size, COPY_BYTES):
            yield flat[start : start + COPY_BYTES]
        return
    row_bytes = tensor.nbytes // len(tensor)
    if row_bytes >= COPY_BYTES:
        for row in tensor:
            yield from pieces_of(row)
        return
    step = COPY_BYTES // row_bytes
    for start in range(0, len(tensor), step):
        yield tensor[start : start + step].contiguous().reshape(-1).view(torch.uint8).numpy()


def _load(
    folder: PosixFolder, file: str, *, source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a file, and what a user should know about how they were read."""
    import torch

    path = folder.path(file)
    notes: tuple[str, ...] = ()
    try:
        why_whole = _why_not_mapped(path)
        with warnings.catch_warnings():
            # torch warns of other pickle protocols; what it cannot read it refuses anyway.
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=why_whole is None)
    except _MALFORMED as error:
        raise _refusal(error, source, file) from None
    except OSError as error:
        why = f"cannot be read: {error.strerror or error}"
        raise SourceError(f"{source}: {path} {why}", source=source, file=file) from error
    if why_whole is not None:
        size = format_bytes(path.stat().st_size)
        notes = (f"{file} {why_whole} and cannot be mapped: read whole into memory, {size}",)
    tensors, left = _unwrapped(loaded, source, file)
    if left:
        notes += (f"{file}: left out what lies beside the weights: {', '.join(left)}",)
    return tensors, notes


def _why_not_mapped(path: Path) -> str | None:
    """Why torch cannot map a file, or would map the wrong bytes; None if it can.

    Raises:
        ValueError: A TorchScript archive, which is a program and no checkpoint.
    """
    with path.open("rb") as opened:
        if opened.read(len(_ZIP_MAGIC)) != _ZIP_MAGIC:
            return "is of the format before torch 1.6"
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if any(record.filename.endswith("/constants.pkl") for record in records):
        raise ValueError("it is a TorchScript archive, which is a program; save its state_dict")
    # torch maps a record where it begins, whatever is there: it would take packed bytes for values.
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        return "is compressed"
    return None


def _refusal(error: BaseException, source: str, file: str) -> SourceError:
    # torch's own text goes on to recommend loading the file without protection.
    text = str(error)
    if wanted := _GLOBAL.search(text):
        why = (
            f"wants {wanted[1]} called while it is read, which is code and not weights. Nothing "
            "of it was run. Ask for safetensors, or have whoever trusts it save the state_dict "
            "alone"
        )
    else:
        said = _REASON.search(text)
        what = said[1] if said else (text.splitlines() or [""])[0].partition(" In PyTorch 2.6")[0]
        why = f"cannot be read ({type(error).__name__}: {what.rstrip('.')}); fetch the file again"
    return SourceError(f"{source}: {file} {why}", source=source, file=file)


def _unwrapped(loaded: Any, source: str, file: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The mapping of names to tensors in what a file holds, and the keys beside it."""
    if _all_tensors(loaded):
        return _checked(loaded, source, file), ()
    if isinstance(loaded, Mapping):
        inner = [key for key in _WRAPPERS if _all_tensors(loaded.get(key))]
        if len(inner) == 1:
            left = tuple(str(key) for key in loaded if key != inner[0])
            return _checked(loaded[inner[0]], source, file), left
        odd = next(
            (f"{key!r} is a {type(v).__name__}" for key, v in loaded.items() if not _is_tensor(v)),
            "it is empty",
        )
    else:
        odd = f"it is a {type(loaded).__name__}"
    raise SourceError(
        f"{source}: {file} holds no plain mapping of names to tensors, which a state_dict is: "
        f"{odd}. Save the model's state_dict alone.",
        source=source,
        file=file,
    )


def _all_tensors(found: Any) -> bool:
    return isinstance(found, Mapping) and bool(found) and all(map(_is_tensor, found.values()))


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _checked(tensors: Mapping[Any, Tensor], source: str, file: str) -> dict[str, Tensor]:
    """The tensors without their subclasses and lazy bits, if a safetensors file can hold them."""
    import torch

    plain = {}
    for name, tensor in tensors.items():
        if not isinstance(name, str) or name == "__metadata__" or not _is_text(name):
            why = f"calls a tensor {name!r}; expected text, and not __metadata__"
            raise SourceError(f"{source}: {file} {why}", source=source, file=file)
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            why = f"tensor {name!r} is {tensor.layout}, quantised or without values; expected dense"
            raise SourceError(f"{source}: {file}: {why}", source=source, tensor=name, file=file)
        plain[name] = tensor.detach().resolve_conj().resolve_neg()
    return plain


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _entry(name: str, tensor: Tensor, file: str, source: str) -> TensorEntry:
    torch_name = str(tensor.dtype).removeprefix("torch.")
    dtype = _DTYPES.get(torch_name)
    if dtype is None or dtype.bits != 8 * tensor.element_size():
        raise SourceError(
            f"{source}: {file}: tensor {name!r} is {torch_name}, which safetensors cannot hold",
            source=source,
            tensor=name,
            file=file,
        )
    return TensorEntry(name, dtype, tuple(tensor.shape), file, 0, tensor.nbytes)


def _shared(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of the very same values in the same memory, each with the first of its names."""
    first: dict[tuple[object, ...], str] = {}
    second = {}
    for name, tensor in tensors.items():
        if tensor.nbytes == 0:
            continue
        place = tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()
        if (known := first.setdefault(place, name)) != name:
            second[name] = known
    return second

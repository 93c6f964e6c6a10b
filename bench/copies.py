"""`python -m bench.copies FROM TO`: a folder to a bucket or back, as fast as obstore does it alone.

What somebody does who has no tool that reads and writes buckets: every file at once, in parts.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import obstore
from obstore.store import S3Store

FILES_AT_ONCE = 4
CHUNK_BYTES = 8 << 20


def _bucket(url: str) -> tuple[S3Store, str]:
    place = urlsplit(url)
    return S3Store(place.netloc), place.path.strip("/")


def download(url: str, folder: Path) -> None:
    """Every object below a URL into a folder."""
    store, prefix = _bucket(url)
    folder.mkdir(parents=True)

    def fetch(key: str) -> None:
        with (folder / Path(key).name).open("wb", buffering=0) as file:
            for chunk in obstore.get(store, key).stream(min_chunk_size=CHUNK_BYTES):
                file.write(chunk)

    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        listed = obstore.list(store, prefix).collect()
        list(pool.map(fetch, [meta["path"] for meta in listed]))


def upload(folder: Path, url: str) -> None:
    """Every file of a folder, in parts."""
    store, prefix = _bucket(url)

    def send(path: Path) -> None:
        obstore.put(store, f"{prefix}/{path.name}", path, chunk_size=CHUNK_BYTES)

    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        list(pool.map(send, sorted(path for path in folder.iterdir() if path.is_file())))


def main() -> None:
    """Copy whichever way the arguments say."""
    source, target = sys.argv[1:]
    if "://" in source:
        download(source, Path(target))
    else:
        upload(Path(source), target)


if __name__ == "__main__":
    main()

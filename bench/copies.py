"""`python -m bench.copies FROM... TO`: files to and from buckets, as fast as obstore does it alone.

URL FOLDER        every object into a folder    what somebody does who has no tool that reads
FOLDER URL        every file into a bucket      and writes buckets: several at once, in parts
URL URL... URL    reads all that lies below the first ones, and stores what the very first one
                  gives at the last: the requests of a merge, and none of its work
"""

from __future__ import annotations

import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore
from obstore.store import S3Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from obstore import ObjectMeta

FILES_AT_ONCE = 4
CHUNK_BYTES = 8 << 20


def _bucket(url: str) -> tuple[S3Store, str]:
    place = urlsplit(url)
    return S3Store(place.netloc), place.path.strip("/")


def download(url: str, folder: Path) -> None:
    """Every object below a URL into a folder."""
    store, _ = _bucket(url)
    folder.mkdir(parents=True)

    def fetch(key: str) -> None:
        with (folder / Path(key).name).open("wb", buffering=0) as file:
            for chunk in obstore.get(store, key).stream(min_chunk_size=CHUNK_BYTES):
                file.write(chunk)

    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        list(pool.map(fetch, [meta["path"] for meta in _listed(url)]))


def upload(folder: Path, url: str) -> None:
    """Every file of a folder, in parts."""
    store, prefix = _bucket(url)

    def send(path: Path) -> None:
        obstore.put(store, f"{prefix}/{path.name}", path, chunk_size=CHUNK_BYTES)

    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        list(pool.map(send, sorted(path for path in folder.iterdir() if path.is_file())))


def relay(urls: Sequence[str], out: str) -> None:
    """Read every object below the URLs, and store those of the first as they come."""
    target, folder = _bucket(out)

    def pass_on(url: str, key: str) -> None:
        chunks = obstore.get(_bucket(url)[0], key).stream(min_chunk_size=CHUNK_BYTES)
        if url != urls[0]:
            deque(chunks, maxlen=0)
            return
        name = f"{folder}/{Path(key).name}"
        with obstore.open_writer(target, name, buffer_size=CHUNK_BYTES) as writer:
            for chunk in chunks:
                writer.write(chunk)

    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        keys = [(url, meta["path"]) for url in urls for meta in _listed(url)]
        list(pool.map(lambda one: pass_on(*one), keys))


def _listed(url: str) -> Sequence[ObjectMeta]:
    store, prefix = _bucket(url)
    return obstore.list(store, prefix).collect()


def main() -> None:
    """Copy whichever way the arguments say."""
    *sources, target = sys.argv[1:]
    if "://" not in sources[0]:
        upload(Path(sources[0]), target)
    elif "://" not in target:
        download(sources[0], Path(target))
    else:
        relay(sources, target)


if __name__ == "__main__":
    main()

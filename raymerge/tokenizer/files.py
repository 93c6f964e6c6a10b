"""The small files a tokenizer is made of, by what they say."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from raymerge.checkpoint.folder import Folder

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
ADDED_TOKENS = "added_tokens.json"
SPECIAL_TOKENS = "special_tokens_map.json"
VOCAB_JSON = "vocab.json"
VOCAB_TXT = "vocab.txt"
SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
TEMPLATE_JINJA = "chat_template.jinja"
TEMPLATE_JSON = "chat_template.json"
GENERATION_CONFIG = "generation_config.json"

VOCABULARY_FILES = (TOKENIZER_JSON, VOCAB_JSON, VOCAB_TXT, *SENTENCEPIECE)
"""Each lists tokens; the first that is there counts, as for transformers."""
TOKENIZER_FILES = frozenset(
    {
        *VOCABULARY_FILES,
        TOKENIZER_CONFIG,
        ADDED_TOKENS,
        SPECIAL_TOKENS,
        TEMPLATE_JINJA,
        TEMPLATE_JSON,
        "merges.txt",
        "tekken.json",
    }
)
"""What belongs to a tokenizer and travels with it."""
_READ = (
    *VOCABULARY_FILES,
    TOKENIZER_CONFIG,
    ADDED_TOKENS,
    TEMPLATE_JINJA,
    TEMPLATE_JSON,
    GENERATION_CONFIG,
)


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What a source's folder holds of a tokenizer."""

    label: str
    contents: Mapping[str, bytes]

    @property
    def any(self) -> bool:
        """Whether one of them lists tokens."""
        return any(name in self.contents for name in VOCABULARY_FILES)

    @property
    def fingerprint(self) -> str:
        """Equal for sources whose tokens are equal because the files are."""
        hashed = hashlib.sha256()
        listing = next((n for n in VOCABULARY_FILES if n in self.contents), "")
        for name in (listing, ADDED_TOKENS, TOKENIZER_CONFIG):
            content = self.contents.get(name, b"")
            hashed.update(f"{name}\0{len(content)}\0".encode() + content)
        return hashed.hexdigest()


def read_tokenizer_files(folder: Folder, names: Collection[str], *, label: str) -> TokenizerFiles:
    """Read the files of a source that say which tokens it has.

    Args:
        folder: Where they lie.
        names: The files that the source has.
        label: What messages call it.
    """
    sizes = folder.sizes()
    wanted = [name for name in _READ if name in names and name in sizes]
    return TokenizerFiles(label, {name: folder.read(name, 0, sizes[name]) for name in wanted})

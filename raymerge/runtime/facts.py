"""What headers and small files say of a source: size, precision, vocabulary, chat template."""

from __future__ import annotations

import hashlib
from collections import Counter

from raymerge.checkpoint.catalog import Catalog
from raymerge.checkpoint.chat import chat_template
from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.folder import Folder
from raymerge.checkpoint.quantised import quantisation
from raymerge.checkpoint.scaled import scaled_codes
from raymerge.checkpoint.ties import config_sections, find_embedding
from raymerge.runtime.inspection import SourceFacts


def source_facts(catalog: Catalog, folder: Folder, *, is_base: bool) -> SourceFacts:
    """Gather them; of the folder, the files that may hold a chat template are read."""
    parameters: Counter[DType] = Counter()
    for entry in catalog.tensors.values():
        parameters[entry.dtype] += entry.num_elements
    embedding = find_embedding(catalog)
    said = (section.get("vocab_size") for section in config_sections(catalog.config))
    template = chat_template(folder, folder.sizes(), source=catalog.label)
    return SourceFacts(
        label=catalog.label,
        location=catalog.location,
        is_base=is_base,
        tensors=len(catalog.tensors),
        parameters=parameters.total(),
        dtype=parameters.most_common(1)[0][0].torch_name if parameters else None,
        quantisation=quantisation(catalog),
        widened=scaled_codes(catalog) is not None,
        vocabulary_rows=catalog.tensors[embedding].shape[0] if embedding else None,
        vocab_size=next((size for size in said if isinstance(size, int)), None),
        chat_template=hashlib.sha256(template.encode()).hexdigest()[:16] if template else None,
    )

"""A sweep that is a list of recipes: a trial per file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from raymerge.errors import RecipeError
from raymerge.recipe.document import read_documents
from raymerge.sweep.template import make_trial
from raymerge.sweep.trial import Trial


def listed_trials(
    paths: Sequence[str], texts: Sequence[str], out: str, seed: int | None
) -> list[Trial]:
    """A trial per recipe, named by its file, and by its folder where two files are named alike.

    Args:
        paths: Of the recipes.
        texts: What is in them.
        out: Path or URL that trials without an `out` of their own are put below.
        seed: In place of the recipes'.

    Raises:
        RecipeError: A recipe is wrong, or two of them get one name.
    """
    stems = Counter(Path(path).stem for path in paths)
    trials: dict[str, Trial] = {}
    for path, text in zip(paths, texts, strict=True):
        file = Path(path)
        stem = file.stem if stems[file.stem] == 1 else f"{file.parent.name}-{file.stem}"
        if stem in trials:
            raise RecipeError(
                f"{path}: name is {stem!r}, as it is of {trials[stem].recipe.path}; give each file "
                "once, and files of one name in folders of different names",
                file=path,
            )
        documents = read_documents(text, path)
        trials[stem] = make_trial(documents, path, {}, out, stem=stem, seed=seed)
    return list(trials.values())

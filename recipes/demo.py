# ruff: noqa: INP001 - a script, not a package
"""`make demo`: train a small model into three specialists, merge them, and score everything.

The base is a vision transformer that has seen a quarter of scikit-learn's training digits turned,
mirrored and inverted. Each specialist goes on from there with all of them, in one of the three ways
only. All four are written as ordinary sharded checkpoints, the `raymerge` command merges the
specialists back into one model, and transformers loads what it wrote.

    python recipes/demo.py [--keep FOLDER] [--quick]

Seeds are fixed and nothing is chosen by looking at the scores: they are printed as they come out.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from time import perf_counter

import torch
import transformers
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import ViTConfig, ViTForImageClassification

TASKS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "turned": lambda images: images.rot90(1, (2, 3)),
    "mirrored": lambda images: images.flip(3),
    "inverted": lambda images: 1 - images,
}
"""Ways to show a digit, `(count, 1, 8, 8)` -> the same shape."""

NUM_TRAIN = 1200
"""Of the 1797 digits; the other 597 are what every score is measured on."""
NUM_BASE = 300
"""Of the training digits, what the base sees."""
BATCH = 64
SHARD_SIZE = "1MB"

RECIPES = {
    "linear": """\
merge_method: linear
models: [models/turned, models/mirrored, models/inverted]
parameters: {weight: 1}
""",
    "ties": """\
merge_method: ties
base_model: models/base
models: [models/turned, models/mirrored, models/inverted]
parameters: {weight: 1, density: 0.2}
""",
    "dare_ties": """\
merge_method: dare_ties
base_model: models/base
models: [models/turned, models/mirrored, models/inverted]
parameters: {weight: 1, density: 0.5, normalize: true}
seed: 0
""",
}
"""The settings of the papers, no tuning: TIES keeps 20 %, DARE drops half."""


@dataclass(frozen=True, slots=True)
class Epochs:
    """How long to train."""

    base: int
    task: int


FULL = Epochs(base=15, task=6)
QUICK = Epochs(base=1, task=1)


@dataclass(frozen=True, slots=True)
class Digits:
    """Images of one size and their labels."""

    images: Tensor
    """`(count, 1, 8, 8)`, float32, 0 to 1."""
    labels: Tensor
    """`(count,)`, int64, 0 to 9."""

    def __getitem__(self, chosen: Tensor | slice) -> Digits:
        """Some of them."""
        return Digits(self.images[chosen], self.labels[chosen])

    def shown(self, *tasks: str) -> Digits:
        """All of them in the way of each task, one task after the other."""
        images = torch.cat([TASKS[task](self.images) for task in tasks])
        return Digits(images, self.labels.repeat(len(tasks)))


def read_digits() -> tuple[Digits, Digits]:
    """Training and test digits, always the same split."""
    found = load_digits()
    images = torch.tensor(found.images / 16, dtype=torch.float32).unsqueeze(1)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    digits = Digits(images, torch.tensor(found.target))[order]
    return digits[:NUM_TRAIN], digits[NUM_TRAIN:]


def new_model() -> ViTForImageClassification:
    """A transformer of a million parameters over four patches of 4 x 4 pixels, untrained.

    Two wide layers: fine-tunes of narrow models hardly merge.
    """
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=10,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return ViTForImageClassification(config)


def train(
    model: ViTForImageClassification, digits: Digits, *, epochs: int, rate: float
) -> ViTForImageClassification:
    """Train the model in place and return it."""
    model.train()
    order = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    steps = epochs * -(-len(digits.labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(digits.labels), generator=order), BATCH):
            batch = digits[chosen]
            loss = cross_entropy(model(batch.images).logits, batch.labels)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return model


@torch.no_grad()
def score(model: ViTForImageClassification, digits: Digits) -> float:
    """Accuracy in percent."""
    model.eval()
    found: Tensor = model(digits.images).logits.argmax(1)
    return 100 * int((found == digits.labels).sum()) / len(digits.labels)


def make_models(folder: Path, digits: Digits, epochs: Epochs) -> None:
    """Train base and specialists and save them as `save_pretrained` does, in shards."""
    base = train(new_model(), digits[:NUM_BASE].shown(*TASKS), epochs=epochs.base, rate=7e-4)
    base.save_pretrained(folder / "base", max_shard_size=SHARD_SIZE)
    for task in TASKS:
        tuned = train(copy.deepcopy(base), digits.shown(task), epochs=epochs.task, rate=1e-4)
        tuned.save_pretrained(folder / task, max_shard_size=SHARD_SIZE)


def say(text: str) -> None:
    """Print at once, so that what commands print comes in its place."""
    print(text, flush=True)  # noqa: T201 - the demo's output


def call(command: Sequence[str], folder: Path) -> None:
    """Show a command, run it in `folder`, stop the demo if it fails."""
    say(f"\n$ {' '.join(command)}")
    executable = Path(sys.executable).with_name(command[0])
    program = [str(executable) if executable.exists() else command[0], *command[1:]]
    subprocess.run(program, cwd=folder, check=True)  # noqa: S603 - our own commands


def merge_all(folder: Path) -> None:
    """Plan one recipe, then merge and verify each, all through the command line."""
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(text)
    call(["cat", "ties.yaml"], folder)
    call(["raymerge", "plan", "ties.yaml"], folder)
    for name in RECIPES:
        out = f"merged/{name}"
        call(["raymerge", "merge", f"{name}.yaml", out, "--shard-size", SHARD_SIZE], folder)
        call(["raymerge", "verify", out], folder)


def score_all(folder: Path, digits: Digits) -> dict[str, dict[str, float]]:
    """Accuracy per task of every checkpoint, as transformers loads it from its files."""
    paths = [folder / "models" / name for name in ("base", *TASKS)]
    paths += [folder / "merged" / name for name in RECIPES]
    scores = {}
    for path in paths:
        model = ViTForImageClassification.from_pretrained(path)
        scores[path.name] = {task: score(model, digits.shown(task)) for task in TASKS}
    return scores


def table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """A row per checkpoint, a column per task and their mean."""
    lines = ["".join([f"{'accuracy, %':<14}", *(f"{name:>10}" for name in (*TASKS, "mean"))])]
    for name, row in scores.items():
        cells = [*row.values(), fmean(row.values())]
        lines.append("".join([f"{name:<14}", *(f"{cell:>10.1f}" for cell in cells)]))
    return "\n".join(lines)


def verdict(scores: Mapping[str, Mapping[str, float]]) -> str:
    """What to notice, whichever way the numbers fell."""
    means = {name: fmean(row.values()) for name, row in scores.items()}
    merge = max(RECIPES, key=means.__getitem__)
    specialist = max(TASKS, key=means.__getitem__)
    lead = fmean(scores[task][task] - scores[merge][task] for task in TASKS)
    return (
        f"Over the three tasks the best merge ({merge}) scores {means[merge]:.1f}, the best "
        f"specialist ({specialist}) {means[specialist]:.1f}, the base {means['base']:.1f}.\n"
        f"On its own task a specialist scores {abs(lead):.1f} points "
        f"{'more' if lead >= 0 else 'less'} than that merge, on average."
    )


def run(folder: Path, epochs: Epochs) -> None:
    """Everything, in `folder`."""
    began = perf_counter()
    # Sums in one order, whatever the machine: with more threads the scores are others.
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    training, testing = read_digits()
    say(f"training a base and specialists for {', '.join(TASKS)} digits")
    make_models(folder / "models", training, epochs)
    call(["ls", "models/base"], folder)
    merge_all(folder)
    scores = score_all(folder, testing)
    say(f"\n{table(scores)}\n\n{verdict(scores)}")
    say(f"Everything took {perf_counter() - began:.0f} s.")


def main() -> None:
    """Run in a temporary folder, or in one that stays."""
    parser = argparse.ArgumentParser(description="Train three specialists, merge them, score all.")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work in this new folder")
    parser.add_argument("--quick", action="store_true", help="one epoch each: scores mean nothing")
    arguments = parser.parse_args()
    epochs = QUICK if arguments.quick else FULL
    keep: Path | None = arguments.keep
    if keep is None:
        with tempfile.TemporaryDirectory() as folder:
            run(Path(folder), epochs)
        return
    if keep.exists():
        parser.error(f"{keep} exists; name a folder that does not")
    keep.mkdir(parents=True)
    run(keep, epochs)


if __name__ == "__main__":
    main()

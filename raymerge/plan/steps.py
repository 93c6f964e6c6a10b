"""From a method and a tensor's resolved knobs to the step that is done to it.

Methods are pure, so their figures are worked out here, once for all tensors with the same knobs;
what a method refuses becomes a PlanError before anything runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from raymerge.checkpoint.dtypes import DType, promote
from raymerge.errors import PlanError
from raymerge.methods.registry import Family, Over
from raymerge.methods.rules import SourcesRefusedError
from raymerge.plan.graph import CopyStep, DeltaStep, FreeStep, Input, SpanStep, Step
from raymerge.recipe import Knobs, Recipe
from raymerge.recipe.section import Section

KEEP = CopyStep("keep")
COPY = CopyStep("passthrough")
NOT_FLOATING = CopyStep("not a floating-point tensor")


def arguments(knobs: Knobs) -> dict[str, object]:
    """Knobs as keyword arguments of a method's function: `lambda` is `lambda_` in Python."""
    return {"lambda_" if name == "lambda" else name: value for name, value in knobs.items()}


@dataclass(slots=True)
class StepMaker:
    """Makes the steps of one recipe; equal ones are one object."""

    recipe: Recipe
    _made: dict[tuple[int, Over, int], Step] = field(default_factory=dict)

    def make(self, name: str, knobs: Knobs, section: Section) -> Step:
        """The step for the knobs of tensor `name` of a section, dtypes aside."""
        over = self.recipe.over(section)
        vectors = len(section.sources) + (over is Over.BASE_AND_SOURCES)
        # The resolver hands out equal knobs as one object, which it keeps alive.
        key = id(knobs), over, vectors
        step = self._made.get(key)
        if step is None:
            try:
                step = self._made[key] = self._new(knobs, over, vectors)
            except ValueError as error:
                raise self._refusal(name, section, error) from error
        return step

    def _new(self, knobs: Knobs, over: Over, vectors: int) -> Step:
        method = self.recipe.method
        if method.family is Family.DELTA:
            rule = method.function(**arguments(knobs))
            return DeltaStep(method=method.name, knobs=knobs, rule=rule)
        if method.family is Family.FREE:
            rule = method.function(**arguments(knobs))
            return FreeStep(method=method.name, knobs=knobs, rule=rule)
        coefficients = None
        if method.needs_gram:
            # What it refuses whatever the Gram matrix is, it refuses here.
            method.function(np.eye(vectors), **arguments(knobs))
        else:
            coefficients = tuple(method.function(**arguments(knobs)))
        return SpanStep(
            method=method.name,
            knobs=knobs,
            relative=over is Over.DELTAS,
            coefficients=coefficients,
            group=method.group(knobs),
        )

    def _refusal(self, name: str, section: Section, error: ValueError) -> PlanError:
        """What a method refuses, in the recipe's words."""
        place, message = self.recipe.path, str(error)
        if isinstance(error, SourcesRefusedError):
            message = error.naming([source.label for source in section.sources])
            chains = {one.knob.name: one.chains for one in section.settings}
            given = [chains[knob][at].settings for knob in error.knobs for at in error.sources]
            place = next((str(settings[0].place) for settings in given if settings), place)
        return PlanError(f"{place}: {self.recipe.method.name} on {name}: {message}", tensor=name)


def output_dtype(name: str, inputs: tuple[Input, ...], recipe: Recipe, step: Step) -> DType:
    """The dtype of an output tensor: the recipe's, else torch's promotion over its inputs.

    Raises:
        PlanError: A float64 input and no dtype to narrow it to, or floating-point inputs among
            others.
    """
    kinds = {one.dtype for one in inputs}
    if not all(kind.mergeable for kind in kinds):
        if len(kinds) > 1:
            listed = ", ".join(sorted(kinds))
            raise PlanError(
                f"{name} is of dtypes {listed} in different sources, which cannot be merged. To "
                f"copy the donor's write `keep: [{name}]`, to leave it out `drop: [{name}]`.",
                tensor=name,
            )
        return kinds.pop()
    if recipe.dtype is not None:
        return recipe.dtype
    if _is_copy(step):
        return inputs[0].dtype
    if DType.F64 in kinds:
        raise PlanError(
            f"{name} is float64 in a source, and arithmetic is float32: name the narrower type to "
            "write, such as `dtype: float32`",
            tensor=name,
        )
    return promote(kinds)


def _is_copy(step: Step) -> bool:
    """Whether the step is its one input, as it is."""
    return isinstance(step, SpanStep) and not step.relative and step.coefficients == (1.0,)


def settle(step: Step, inputs: tuple[Input, ...], dtype: DType) -> Step:
    """The step once dtypes are known: nothing is computed where bytes can be copied."""
    if not dtype.mergeable:
        return NOT_FLOATING
    if _is_copy(step) and inputs[0].dtype is dtype:
        return COPY
    if isinstance(step, FreeStep):
        rule = step.rule.for_shape(inputs[0].shape)
        return step if rule is step.rule else replace(step, rule=rule)
    return step

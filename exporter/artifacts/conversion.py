"""Every TFLite variant of a model, by whichever way of tracing it converts.

This is the process that holds the model; the converter runs in another (`artifacts.tflite`). What
a variant cannot be, costs that variant alone.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from contract import layout
from contract.errors import ExportError
from exporter.artifacts.exportable import Exportable, Recipe
from exporter.artifacts.tflite import MAX_UNROLLED_STEPS, Conversion, ConversionJob
from exporter.processes import ChildProcess

_RECIPES = (
    Recipe(),
    Recipe(batch_size=1),
    Recipe(batch_size=1, unroll_up_to=MAX_UNROLLED_STEPS),
)
_INT8_RECIPES = (
    Recipe(),
    Recipe(unroll_up_to=MAX_UNROLLED_STEPS),
    Recipe(batch_size=1, unroll_up_to=MAX_UNROLLED_STEPS),
)
"""Tried in turn after the SavedModel's own functions; nothing quantises a loop."""
_WEB_RECIPES = (Recipe(batch_size=1), Recipe(batch_size=1, unroll_up_to=MAX_UNROLLED_STEPS))
"""The first is tried at once; the SavedModel's own functions only where their batch is fixed."""

FOLDER = "conversion"
"""Folder of a run, for SavedModels that only the converter reads."""


def ask_for_conversions(
    process: ChildProcess[ConversionJob, Conversion],
    jobs: Sequence[ConversionJob],
    model: Exportable,
    *,
    run_dir: Path,
) -> list[ConversionJob]:
    """Asks for all of them; `iterate_conversions` waits for the answers.

    Returns:
        The jobs as they were asked for.
    """
    folder = run_dir.resolve() / FOLDER
    shutil.rmtree(folder, ignore_errors=True)  # of another model, where a run was cut short
    asked = []
    for job in jobs:
        first = job
        if job.variant == layout.WEB:
            first = _choose_source(job, _WEB_RECIPES[:1], model, folder) or job
        process.ask(first)
        asked.append(first)
    return asked


def iterate_conversions(
    process: ChildProcess[ConversionJob, Conversion],
    jobs: Sequence[ConversionJob],
    model: Exportable,
    *,
    run_dir: Path,
    timeout_s: float,
) -> Iterator[Conversion]:
    """What came of jobs that were asked for, each as soon as it is known.

    A job that fails is asked again for functions that are traced otherwise, as long as there are
    any that might convert. A converter that dies starts again with what is left.

    Raises:
        ExportError: A file cannot be written, or the converter does not start.
    """
    folder = run_dir.resolve() / FOLDER
    waiting = deque(jobs)
    try:
        while waiting:
            job = waiting.popleft()
            found, is_dead = _receive(process, job, timeout_s)
            if is_dead:
                process.restart()
            again = _find_next(job, found, model, folder)
            if again is None:
                yield found
            else:
                process.ask(again)
                waiting.append(again)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _receive(
    process: ChildProcess[ConversionJob, Conversion], job: ConversionJob, timeout_s: float
) -> tuple[Conversion, bool]:
    """The answer, and whether the process ended over it."""
    try:
        return process.receive(timeout_s=timeout_s), False
    except ExportError as error:
        if process.is_alive:
            raise
        problem = f"the converter ended over it: {error.message}"
        remedy = "change the model, or raise export.conversion_timeout_s where it took too long"
        found = Conversion(variant=job.variant, problem=problem, remedy=remedy, recipe=job.recipe)
        return found, True


def _find_next(
    job: ConversionJob, found: Conversion, model: Exportable, folder: Path
) -> ConversionJob | None:
    """What to ask for after an answer; None where there is nothing to be gained."""
    if found.file is not None:
        return None
    recipes: tuple[Recipe, ...] = _RECIPES
    if job.variant in layout.INT8_VARIANTS:
        recipes = _INT8_RECIPES
    elif job.variant == layout.WEB:
        recipes = _WEB_RECIPES
    tried = recipes.index(job.recipe) + 1 if job.recipe is not None else 0
    # Neither another batch nor another loop brings an operator that TFLite lacks.
    left = [one for one in recipes[tried:] if not found.lacks_operators or one == Recipe()]
    return _choose_source(job, left, model, folder)


def _choose_source(
    job: ConversionJob, recipes: Sequence[Recipe], model: Exportable, folder: Path
) -> ConversionJob | None:
    """The job with functions of the first recipe that the model can be traced by."""
    for recipe in recipes:
        source = folder / f"batch-{recipe.batch_size or 'free'}-unrolled-{recipe.unroll_up_to}"
        if source.is_dir() or model.save_for_conversion(source, recipe):
            return msgspec.structs.replace(job, source=source, recipe=recipe)
    return None

"""Keras models, of `tf_keras` (Keras 2) and of `keras` (Keras 3), under served names.

Both are asked through the same few attributes; where they differ, it is said here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import tensorflow as tf

from contract.errors import ConfigError
from contract.heads import Head, Task
from contract.signature import STRING, Array, Batch, Signature, TensorSpec
from exporter.artifacts.exportable import Exportable, Recipe
from exporter.artifacts.golden import make_image_inputs, shape_rows
from exporter.artifacts.lite_graph import save_for_converter
from exporter.artifacts.names import CLASSIFY, PREDICT_IMAGES
from exporter.artifacts.saved_model import InProcessPredictor, save_functions, write_labels
from exporter.artifacts.signatures import (
    Tensors,
    TracedModel,
    replace_generated,
    trace_signatures,
)
from exporter.data.examples import ExportExamples
from exporter.data.pixels import ZERO_TO_ONE
from exporter.models.inputs import name_rows
from exporter.models.lite_layers import computes_in_half, has_loops, traced_for_lite
from exporter.tasks.activations import find_activation, find_graph, name_activation
from exporter.tasks.heads import Loss, tell_head

_LOG = logging.getLogger(__name__)

_HEAD_EXAMPLES = 8
"""Rows that a model is shown to tell what its heads give."""

KerasObject: TypeAlias = Any
"""A `tf_keras.Model` or a `keras.Model`: two classes without a common base."""


@dataclasses.dataclass(frozen=True)
class _Output:
    """One output: its name in the model, its served name, its head where it has one."""

    own: str
    served: str
    head: Head | None


class KerasModel(Exportable):
    """A Keras model as signatures.

    Args:
        model: Built and trained; its weights are not touched.
        examples: What it will be verified with; it is shown the first rows, to tell what its
            heads give.
        heads: Own output name to what it means, as far as somebody knows; the rest is told.

    Raises:
        ConfigError: It has no weights yet, or cannot be called.
        DatasetError: The examples do not fit its inputs.
    """

    def __init__(
        self,
        model: KerasObject,
        examples: ExportExamples,
        *,
        heads: Mapping[str, Head] | None = None,
    ) -> None:
        self._model = model
        if not getattr(model, "built", True):
            raise ConfigError(
                f"the model ({type(model).__name__}) was never built, so it has no weights to "
                "export; train it, or call it once and load its weights"
            )
        own_inputs = _describe_inputs(model, examples)
        self._own_inputs = tuple(own_inputs)
        self._has_written_names = False
        inputs = self._name_inputs(own_inputs, examples)
        answers = self._try_out(examples, inputs)
        self._own_outputs = tuple(answers)
        self._outputs = self._describe_outputs(answers, examples, heads or {})
        only = self._outputs[0].head if len(self._outputs) == 1 else None
        shape = next(iter(answers.values())).shape
        is_classifier = only is not None and only.task == "multiclass" and len(shape) == 2
        class_names = only.class_names if only is not None else ()
        self._class_names = examples.class_names or class_names
        self._traced = TracedModel(
            call=self._call,
            inputs=inputs,
            outputs=tuple(one.served for one in self._outputs),
            is_classifier=is_classifier,
            class_names=class_names or tuple(map(str, range(shape[-1]))) if is_classifier else (),
            image_shape=_find_image_shape(examples) if len(inputs) == 1 else (),
            pixels=examples.pixels or ZERO_TO_ONE,
        )
        self._functions = trace_signatures(self._traced)
        self._predictor = InProcessPredictor(self._functions)
        self.signatures = self._predictor.signatures
        self.heads = {one.served: one.head for one in self._outputs if one.head is not None}
        if only is not None and self.signatures.keys() & {CLASSIFY, PREDICT_IMAGES}:
            self.heads = {**self.heads, "scores": only}
        self.is_half_precision = computes_in_half(model)
        self.lite_signatures = tuple(
            name
            for name, signature in self.signatures.items()
            if all(spec.dtype != STRING for spec in signature.inputs.values())
        )

    def predict(self, batch: Batch, *, signature_name: str = "") -> dict[str, Array]:
        """See `Exportable.predict`."""
        return self._predictor.predict(batch, signature_name=signature_name)

    def make_inputs(
        self, signature: Signature, examples: ExportExamples, inputs: Mapping[str, Array]
    ) -> dict[str, Array] | None:
        """See `Exportable.make_inputs`."""
        if examples.pixels is not None and len(inputs) == 1:
            (rows,) = inputs.values()
            made = make_image_inputs(signature, rows, examples.pixels)
            if made is not None:
                return made
        if signature.name == PREDICT_IMAGES:
            (rows,) = inputs.values()
            return {"images": shape_rows(rows, signature.inputs["images"], None)}
        own = dict(zip(self._traced.inputs, self._own_inputs, strict=True))  # in the model's order
        named = name_rows(inputs, own)
        return {
            name: shape_rows(named[name], spec, examples.pixels)
            for name, spec in signature.inputs.items()
        }

    def name_targets(self, targets: Mapping[str, Array]) -> dict[str, Array]:
        """See `Exportable.name_targets`; targets may have the model's own names, too."""
        served = {one.own: one.served for one in self._outputs}
        return super().name_targets(
            {served.get(name, name): array for name, array in targets.items()}
        )

    def save(self, directory: Path) -> None:
        """See `Exportable.save`."""
        save_functions(directory, self._functions, _list_variables(self._model), self._model)
        write_labels(directory, self._class_names)

    def save_for_conversion(self, directory: Path, recipe: Recipe) -> bool:
        """See `Exportable.save_for_conversion`."""
        is_recurrent = has_loops(self._model)
        is_fixed = any(spec.shape[0] is not None for spec in self._traced.inputs.values())
        if recipe.batch_size is not None:
            if is_fixed:
                return False
        elif recipe.unroll_up_to:
            if not is_recurrent:
                return False
        elif not (self.is_half_precision or (is_recurrent and is_fixed)):
            return False
        traced = self._traced
        if recipe.batch_size is not None:
            inputs = {
                name: tf.TensorSpec((recipe.batch_size, *spec.shape[1:]), spec.dtype)
                for name, spec in traced.inputs.items()
            }
            traced = dataclasses.replace(traced, inputs=inputs, batch_size=recipe.batch_size)
        try:
            with traced_for_lite(self._model, recipe):
                functions = trace_signatures(traced, with_strings=False)
        except Exception:  # the user's own layers: not all of them take a batch of any size
            _LOG.debug("cannot be traced by %s", recipe, exc_info=True)
            return False
        return save_for_converter(directory, functions)

    def _name_inputs(
        self, own: Mapping[str, tf.TensorSpec], examples: ExportExamples
    ) -> dict[str, tf.TensorSpec]:
        """Served name to what each input takes."""
        if examples.pixels is not None and len(own) == 1:
            return {"images": next(iter(own.values()))}
        kinds = _list_kinds(self._model)
        if isinstance(_find_structure(self._model), Mapping):
            kinds = {}  # somebody wrote these names
        elif getattr(self._model, "inputs", None):
            first = {f"{name}_input": kind for name, kind in kinds.items()}
            kinds = dict.fromkeys(own, "InputLayer") | first | kinds
        names = replace_generated(list(own), kinds, "features", "input")
        return dict(zip(names, own.values(), strict=True))

    def _try_out(
        self, examples: ExportExamples, inputs: Mapping[str, tf.TensorSpec]
    ) -> dict[str, Array]:
        """Own output name to what the model answers to a few rows."""
        own = dict(zip(inputs, self._own_inputs, strict=True))
        size = next((spec.shape[0] for spec in inputs.values() if spec.shape.rank), None)
        rows = np.resize(
            np.arange(min(len(examples.golden), _HEAD_EXAMPLES)), size or _HEAD_EXAMPLES
        )
        named = name_rows(examples.golden.take(rows).inputs, own)
        tensors = {
            name: tf.constant(
                shape_rows(named[name], _to_contract(name, spec), examples.pixels), spec.dtype
            )
            for name, spec in inputs.items()
        }
        try:
            answers = self._call_own(tensors)
        except ConfigError:
            raise
        except Exception as error:  # the user's own model: whatever it raises is theirs to read
            raise ConfigError(
                f"the model cannot be called on {_describe_tensors(tensors)}: "
                f"{type(error).__name__}: {error}"
            ) from error
        return {name: answer.numpy() for name, answer in answers.items()}

    def _call(self, tensors: Tensors) -> dict[str, tf.Tensor]:
        """Runs the model on tensors by their served names; its outputs by theirs."""
        answers = self._call_own(tensors)
        return {one.served: answers[one.own] for one in self._outputs}

    def _call_own(self, tensors: Tensors) -> dict[str, tf.Tensor]:
        values = list(tensors.values())
        given = dict(zip(self._own_inputs, values, strict=True))
        structure, others = _structure_inputs(self._model, given)
        answers = self._model(structure, **others, training=False)
        found = dict(_iterate_outputs(answers))
        self._has_written_names = isinstance(answers, Mapping)
        if self._has_written_names:
            return found
        names = _list_output_names(self._model, len(found))
        return dict(zip(names, found.values(), strict=True))

    def _describe_outputs(
        self, answers: Mapping[str, Array], examples: ExportExamples, heads: Mapping[str, Head]
    ) -> list[_Output]:
        kinds = _list_kinds(self._model)
        activations = _list_activations(self._model, len(answers))
        told = {}
        for at, (name, answer) in enumerate(answers.items()):
            target = _find_target(name, examples.targets, len(answers))
            told[name] = heads.get(name) or tell_head(
                answer,
                activation=activations[at],
                target=target,
                class_names=examples.given_names if len(answers) == 1 else (),
                loss=_describe_loss(self._model, name, at),
            )
            told[name] = _name_classes(told[name], answer, target)
        only = next(iter(told.values())) if len(told) == 1 else None
        if only is not None and only.task == "multiclass" and not only.from_logits:
            served = ["probabilities"]
        else:
            if self._has_written_names:
                kinds = {}
            elif not getattr(find_graph(self._model), "output_names", None):
                kinds = dict.fromkeys(told, "Output")
            served = replace_generated(list(told), kinds, "outputs", "output")
        return [
            _Output(own, name, head) for (own, head), name in zip(told.items(), served, strict=True)
        ]


def is_keras(model: object) -> bool:
    """Whether an object is a model of Keras 2 or 3."""
    return any(
        base.__name__ == "Model" and base.__module__.partition(".")[0] in ("tf_keras", "keras")
        for base in type(model).__mro__
    )


def _describe_inputs(model: KerasObject, examples: ExportExamples) -> dict[str, tf.TensorSpec]:
    """Own input name to what it takes, in the model's order.

    A model that was never given an Input takes what the examples are; sizes that it leaves open
    stay so.
    """
    declared = getattr(model, "inputs", None)
    if not declared:
        return {
            name or "features": tf.TensorSpec(
                (None, *array.shape[1:]),
                tf.string if array.dtype.kind in "OSU" else _to_float(array.dtype),
            )
            for name, array in examples.golden.inputs.items()
        }
    structure = _find_structure(model)
    if isinstance(structure, Mapping):
        names = sorted(structure)
    else:
        names = getattr(model, "input_names", None) or [tensor.name for tensor in declared]
    return {
        name: tf.TensorSpec(tuple(tensor.shape), tensor.dtype)
        for name, tensor in zip(names, declared, strict=True)
    }


def _to_float(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.float32) if dtype.kind == "f" or dtype == np.uint8 else dtype


def _find_structure(model: KerasObject) -> object:
    """How the inputs are given to the model: one, a list, a dict; None where it does not say."""
    structure = getattr(model, "_inputs_struct", None)  # Keras 3
    return getattr(model, "_nested_inputs", None) if structure is None else structure


def _structure_inputs(
    model: KerasObject, tensors: dict[str, tf.Tensor]
) -> tuple[object, dict[str, tf.Tensor]]:
    """Tensors by own input name as the model is called with them: the first argument, the others.

    Raises:
        ConfigError: Its call needs an argument that there is no tensor for.
    """
    structure = _find_structure(model)
    if structure is not None:
        return tf.nest.pack_sequence_as(structure, list(tensors.values())), {}
    if getattr(model, "inputs", None):
        values = list(tensors.values())
        return (values[0] if len(values) == 1 else values), {}
    needed = _list_needed_arguments(model)
    if len(needed) < 2:
        return (next(iter(tensors.values())) if len(tensors) == 1 else tensors), {}
    lacking = [name for name in needed if name not in tensors]
    if lacking:
        raise ConfigError(
            f"the model's call needs the arguments {', '.join(needed)}, and the examples give "
            f"{', '.join(tensors) or 'none'}; give examples as a mapping with an array for "
            f"{', '.join(lacking)}, or give {lacking[0]} a default"
        )
    first, *others = needed
    return tensors[first], {name: tensors[name] for name in others}


def _list_needed_arguments(model: KerasObject) -> list[str]:
    """Arguments of a subclass's `call` that have no default."""
    parameters = inspect.signature(type(model).call).parameters.values()
    return [
        one.name
        for one in list(parameters)[1:]
        if one.default is one.empty
        and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
        and one.name not in ("training", "mask")
    ]


def _iterate_outputs(answers: object, path: str = "") -> Iterator[tuple[str, tf.Tensor]]:
    """Name and tensor of each output: the keys of dicts and the places in lists, joined by `_`."""
    if isinstance(answers, Mapping):
        for key, one in answers.items():
            yield from _iterate_outputs(one, f"{path}_{key}" if path else str(key))
    elif isinstance(answers, list | tuple):
        for at, one in enumerate(answers):
            yield from _iterate_outputs(one, f"{path or 'output'}_{at}")
    else:
        yield path or "output", answers


def _list_output_names(model: KerasObject, count: int) -> list[str]:
    names = list(getattr(find_graph(model), "output_names", None) or [])
    if len(names) == count == len(set(names)):
        return names
    return ["output"] if count == 1 else [f"output_{at}" for at in range(count)]


def _list_kinds(model: KerasObject) -> dict[str, str]:
    """Layer name to the name of its class."""
    return {layer.name: type(layer).__name__ for layer in getattr(model, "layers", ())}


def _list_activations(model: KerasObject, count: int) -> list[str]:
    """Name of the activation that gives each output, in the order of the answers; "" unknown."""
    graph = find_graph(model)
    structure = getattr(graph, "_outputs_struct", None)  # Keras 3
    if structure is None:
        structure = getattr(graph, "_nested_outputs", None)
    if structure is None:
        structure = getattr(graph, "outputs", None)
    tensors = [] if structure is None else [tensor for _, tensor in _iterate_outputs(structure)]
    if len(tensors) == count:
        return [find_activation(tensor) for tensor in tensors]
    layers = getattr(model, "layers", ())
    if count != 1 or not layers:
        return [""] * count
    return [name_activation(layers[-1]).replace("linear", "")]  # a subclass: it is likely the last


_LOSSES: dict[str, Task] = {
    "binary": "binary",
    "categorical": "multiclass",
    "squared": "regression",
    "absolute": "regression",
    "huber": "regression",
    "mse": "regression",
    "mae": "regression",
    "logcosh": "regression",
    "poisson": "regression",
}


def _describe_loss(model: KerasObject, name: str, at: int) -> Loss | None:
    """What the loss that the model was compiled with, if it was, says of one output."""
    loss = getattr(model, "loss", None)
    if isinstance(loss, Mapping):
        loss = loss.get(name)
    elif isinstance(loss, list | tuple):
        loss = loss[at] if at < len(loss) else None
    if loss is None or isinstance(loss, Mapping | list | tuple):
        return None
    named = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    plain = named.lower().replace("_", "")
    task = next((task for part, task in _LOSSES.items() if part in plain), None)
    from_logits = bool(
        getattr(loss, "from_logits", False)
        or getattr(loss, "_fn_kwargs", {}).get("from_logits", False)
        or getattr(getattr(loss, "fn", None), "keywords", {}).get("from_logits", False)
    )
    return Loss(task, from_logits=from_logits)


def _find_target(name: str, targets: Mapping[str, Head], num_outputs: int) -> Head | None:
    if name in targets:
        return targets[name]
    return targets.get("") or (
        next(iter(targets.values())) if num_outputs == 1 and len(targets) == 1 else None
    )


def _name_classes(head: Head | None, answer: Array, target: Head | None) -> Head | None:
    """The head with the names that the data have for its classes, where it has none."""
    if head is None or target is None or head.class_names or not head.has_classes:
        return head
    width = 2 if head.task == "binary" else answer.shape[-1]
    if len(target.class_names) != width:
        return head
    return msgspec.structs.replace(head, class_names=target.class_names)


def _list_variables(model: KerasObject) -> list[tf.Variable]:
    """Every variable of the model; Keras 3 wraps TensorFlow's own."""
    found = [one if _is_variable(one) else getattr(one, "value", one) for one in model.variables]
    # Keras 2 lists the vocabulary of a text layer among them, which is a table.
    return [one for one in found if _is_variable(one)]


def _is_variable(one: object) -> bool:
    return isinstance(one, tf.Variable)


def _find_image_shape(examples: ExportExamples) -> tuple[int, ...]:
    if examples.pixels is None:
        return ()
    (rows,) = examples.golden.inputs.values()
    return tuple(int(n) for n in rows.shape[1:])


def _to_contract(name: str, spec: tf.TensorSpec) -> TensorSpec:
    shape = None if spec.shape.rank is None else tuple(spec.shape.as_list())
    return TensorSpec(name, spec.dtype.name, shape)


def _describe_tensors(tensors: Tensors) -> str:
    return ", ".join(
        f"{name}: {one.dtype.name} {tuple(one.shape)}" for name, one in tensors.items()
    )

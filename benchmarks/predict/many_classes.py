"""A model with many classes, made from one with few: for what classes cost in prediction.

    python benchmarks/predict/many_classes.py MODEL --classes 105 -o OUT

The last stage's final layer holds each organ several times, with noise, so that every organ has as many
rivals that look like it: a harder case than so many organs would be. Earlier stages stay as they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from zoomseg.backends.onnx_graph import write_graphs
from zoomseg.core.arrays import AnyNumpy
from zoomseg.core.labels import LabelSchema
from zoomseg.io import bundle
from zoomseg.io.bundle import Bundle
from zoomseg.recipe.spec import PriorInput, Stage

NOISE = 0.02
"""Of the copied layers, in parts of their weights' standard deviation."""


def names_of(schema: LabelSchema, classes: int) -> tuple[str, ...]:
    """So many names, background apart: the organs', then numbered copies of them."""
    count = len(schema.names)
    return tuple(
        schema.names[n % count] + (f" {n // count + 1}" if n >= count else "") for n in range(classes - 1)
    )


def widened(layer: AnyNumpy, classes: int, random: np.random.Generator) -> AnyNumpy:
    """A final layer's weights or biases ``[few, ...]`` for many classes: ``[classes, ...]``."""
    organs = np.resize(layer[1:], (classes - 1, *layer.shape[1:]))
    organs[len(layer) - 1 :] += NOISE * layer.std() * random.standard_normal(organs[len(layer) - 1 :].shape)
    return np.concatenate([layer[:1], organs]).astype(layer.dtype)


def with_classes(model: Bundle, classes: int) -> Bundle:
    """``model`` with so many classes in its last stage, background included."""
    random, few = np.random.default_rng(0), 1 + len(model.schema.names)
    last = model.recipe.stages[-1]
    weights = {
        name: widened(tensor, classes, random) if len(tensor) == few else tensor
        for name, tensor in model.weights[last.name].items()
    }
    stages = (*(_naming(stage, model) for stage in model.recipe.stages[:-1]), _naming(last, model, "all"))
    return Bundle(
        model.recipe.model_copy(update={"stages": stages}),
        LabelSchema.consecutive(names_of(model.schema, classes)),
        model.channel_names,
        {**model.weights, last.name: weights},
        model.provenance,
        domain=model.domain,
    )


def _naming(stage: Stage, model: Bundle, labels: str | None = None) -> Stage:
    """What ``all`` meant before there were more labels, by name; the last stage's own labels are all."""
    inputs = tuple(
        source.model_copy(update={"labels": model.schema.names}) if isinstance(source, PriorInput) else source
        for source in stage.inputs
    )
    return stage.model_copy(update={"labels": labels or model.schema.names, "inputs": inputs})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--classes", type=int, default=105)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    bundle.save(with_classes(bundle.load(options.model), options.classes), options.out)
    write_graphs(options.out)


if __name__ == "__main__":
    main()

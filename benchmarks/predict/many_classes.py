"""Make a model with many classes from one with few, to measure the cost of classes in prediction.

    python benchmarks/predict/many_classes.py MODEL --classes 105 -o OUT

The final layer of the last stage contains each organ several times, with noise, so that every organ competes
with similar ones: a harder case than the same number of different organs. Earlier stages are unchanged.
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
"""Standard deviation of the noise in copied layers, relative to that of the layer's weights."""


def names_of(schema: LabelSchema, classes: int) -> tuple[str, ...]:
    """Names for ``classes`` classes without background: those of the organs, then numbered copies of them."""
    count = len(schema.names)
    return tuple(
        schema.names[n % count] + (f" {n // count + 1}" if n >= count else "") for n in range(classes - 1)
    )


def widened(layer: AnyNumpy, classes: int, random: np.random.Generator) -> AnyNumpy:
    """Extend a final layer's weights or biases ``[few, ...]`` to many classes: ``[classes, ...]``."""
    organs = np.resize(layer[1:], (classes - 1, *layer.shape[1:]))
    organs[len(layer) - 1 :] += NOISE * layer.std() * random.standard_normal(organs[len(layer) - 1 :].shape)
    extended: AnyNumpy = np.concatenate([layer[:1], organs]).astype(layer.dtype)
    return extended


def with_classes(model: Bundle, classes: int) -> Bundle:
    """``model`` with ``classes`` classes in its last stage, including background."""
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
    """Replace ``all`` labels by the names of the original ones; the last stage has all labels of the new
    model."""
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

"""Fits the classifiers of domain and query type on the generated sentences and says how well they do on others.

Knows nothing of requests or routers. Multinomial logistic regression by scikit-learn, imported when it is used; what
serves is numpy. Held out are wordings and topics together: a test sentence shares neither with those trained on.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.errors import ArtifactError
from ruvllm.router.classifiers import FOLDER, Classifiers, Linear
from ruvllm.router.examples import Example, examples, fold_of
from ruvllm.router.layout import DOMAINS, QUERY_TYPES

Wide = NDArray[np.float64]
Rows = NDArray[np.int64]

FOLDS = 5
STRENGTH = 10.0  # C, the inverse of the penalty; by held-out log loss among 1, 3, 10 and 30
_ROUNDS = 2000
_PLACES: Mapping[str, tuple[str, ...]] = {"domain": DOMAINS, "query_type": QUERY_TYPES}


@dataclass(frozen=True)
class Accuracy:
    """Share of held-out sentences whose most likely class is theirs, over all folds. `base`: the commonest class."""

    right: float
    base: float
    n: int
    log_loss: float


@dataclass(frozen=True)
class Fitted:
    """What `fit_for` made: the file's content, its hash, and accuracy by place."""

    encoder_id: str
    content: bytes
    accuracy: Mapping[str, Accuracy]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def write(self, folder: Path = FOLDER) -> Path:
        """Write the file; its hash belongs into `shipped.CLASSIFIERS`.

        Raises:
            ArtifactError: the folder is not writable.
        """
        path = folder / f"{self.encoder_id}.safetensors"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.content)
        except OSError as error:
            raise ArtifactError(f"classifiers {path}: {error.strerror or error}; choose another folder") from error
        return path


def fit_for(adapter: EmbeddingAdapter, seed: int = 0, strength: float = STRENGTH) -> Fitted:
    """Fit on every generated sentence; accuracy is that of the same fit on parts of them. About half a minute."""
    rows = examples(seed)
    vectors = adapter.embed([row.text for row in rows], "query").astype(np.float64)  # (n, d)
    parts = {name: fit_linear(vectors, _classes(rows, name), len(_PLACES[name]), strength) for name in _PLACES}
    accuracy = {name: held_out(vectors, rows, name, strength) for name in _PLACES}
    return Fitted(adapter.id, Classifiers(**parts).to_bytes(), accuracy)


def fit_linear(vectors: Wide, classes: Rows, count: int, strength: float = STRENGTH) -> Linear:
    """Vectors (n, d), classes (n,) of `count`, each of them there. Classes weigh the same, however many rows they have.

    Raises:
        ArtifactError: a class has no row.
    """
    from sklearn.linear_model import LogisticRegression

    if missing := sorted(set(range(count)) - set(classes.tolist())):
        raise ArtifactError(f"classifiers: no example of classes {missing}; add some to phrases.toml")
    model = LogisticRegression(C=strength, max_iter=_ROUNDS, class_weight="balanced").fit(vectors, classes)
    return Linear(model.coef_.astype(np.float64), model.intercept_.astype(np.float64))


def held_out(vectors: Wide, rows: Sequence[Example], name: str, strength: float = STRENGTH) -> Accuracy:
    """Of the place `name`; each fold tests sentences whose wording and topics the others have never seen."""
    classes, count = _classes(rows, name), len(_PLACES[name])
    hits, losses, tested = [], [], []
    for fold in range(FOLDS):
        train, test = _split(rows, fold)
        shares = fit_linear(vectors[train], classes[train], count, strength).shares(vectors[test])
        hits += (shares.argmax(axis=1) == classes[test]).tolist()
        losses += (-np.log(shares[np.arange(len(test)), classes[test]])).tolist()
        tested += classes[test].tolist()
    base = np.bincount(tested).max() / len(tested)
    return Accuracy(float(np.mean(hits)), float(base), len(hits), float(np.mean(losses)))


def _split(rows: Sequence[Example], fold: int) -> tuple[Rows, Rows]:
    """Rows to train and to test on; those that share only one of wording and topics with the other side are in neither.

    A domain's own wording has no topics: it is held out by its wording alone.
    """
    train, test = [], []
    for at, row in enumerate(rows):
        inside = [fold_of(part, FOLDS) == fold for part in (row.wording, *row.topics)]
        if all(inside):
            test.append(at)
        elif not any(inside):
            train.append(at)
    return np.array(train, dtype=np.int64), np.array(test, dtype=np.int64)


def _classes(rows: Sequence[Example], name: str) -> Rows:
    places = _PLACES[name]
    return np.array([places.index(getattr(row, name)) for row in rows], dtype=np.int64)


def table(fitted: Fitted) -> list[str]:
    """Lines of a Markdown table of the held-out accuracy."""
    lines = ["| place | classes | right | commonest class | log loss | sentences |", "|---|---|---|---|---|---|"]
    for name, got in fitted.accuracy.items():
        lines.append(
            f"| {name} | {len(_PLACES[name])} | {got.right:.3f} | {got.base:.3f} | {got.log_loss:.3f} | {got.n:,} |"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit for the default encoder, say how well it went, and with --out write the file."""
    from ruvllm.embedding.minilm import MiniLMEncoder

    parser = argparse.ArgumentParser(prog="python -m ruvllm.router.fitting", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for the file; without it nothing is written")
    given = parser.parse_args(arguments)
    fitted = fit_for(EmbeddingAdapter(MiniLMEncoder()))
    print("\n".join(table(fitted)))
    print(f"{fitted.write(given.out) if given.out else fitted.encoder_id}: sha256 {fitted.sha256}")


if __name__ == "__main__":
    main()

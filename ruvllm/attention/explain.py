"""Why a question's nodes stand in their order: a table and a picture of their graph. Knows nothing of the CLI."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvllm.attention.graph import NODE_FEATURES, SELF, Rows
from ruvllm.attention.stage import Ranked
from ruvllm.errors import InputError
from ruvllm.memory.records import RELATIONS

_LABEL = 32  # characters of a title in the picture
_BEHIND_TEXT = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
_KEY = "larger: more attention · darker: higher place · orange ring: rose · thicker edge: heavier"
_FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Explained:
    """A node as it stands: `after` is its place by attention, `before` by what was there before it (from 1)."""

    after: int
    before: int
    id: int
    title: str
    score: float
    prior: float
    share: float  # of attention, in [0, 1]
    hop: int
    cosine: float
    words: float  # BM25 over the best one's
    via: str  # the heaviest edge from a node that stands higher: "<- 3 Cites 0.50"; empty for none

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def explained(ranked: Ranked, titles: dict[int, str], most: int = 20) -> list[Explained]:
    """The first `most` nodes of `ranked`."""
    graph, places = ranked.graph, {id: place for place, id in enumerate(ranked.graph.ids.tolist())}
    after = {id: place for place, id in enumerate(ranked.ids.tolist(), start=1)}
    cosine, words = (graph.nodes[:, NODE_FEATURES.index(name)] for name in ("cosine", "words"))
    share = ranked.attended.share if ranked.attended else np.zeros(graph.n, np.float32)
    rows = []
    for place, id in enumerate(ranked.ids[:most].tolist()):
        at = places[id]
        rows.append(
            Explained(
                place + 1, at + 1, id, titles.get(id, ""), float(ranked.scores[place]), float(ranked.prior[place]),
                float(share[at]), int(graph.hop[at]), float(cosine[at]), float(words[at]), _via(ranked, at, after),
            )
        )  # fmt: skip
    return rows


def _via(ranked: Ranked, at: int, after: dict[int, int]) -> str:
    graph = ranked.graph
    coming = np.flatnonzero((graph.target == at) & (graph.code != SELF))
    mine = after[int(graph.ids[at])]
    higher = [m for m in coming.tolist() if after[int(graph.ids[graph.source[m]])] < mine]
    if not higher:
        return ""
    best = max(higher, key=lambda m: (float(graph.messages[m, 0]), -m))
    relation = RELATIONS[(int(graph.code[best]) - 1) % len(RELATIONS)]
    return f"<- {after[int(graph.ids[graph.source[best]])]} {relation} {graph.messages[best, 0]:.2f}"


def draw(ranked: Ranked, titles: dict[int, str], path: Path, question: str, most: int = 24) -> None:
    """The first `most` nodes and the edges among them, by hop from left to right, the best on top.

    Size is the share of attention (or the score before it), darkness the place; a ring marks what rose; an edge's
    colour is its relation.

    Raises:
        InputError: the file's ending is none of .png, .svg, .pdf.
    """
    if path.suffix not in _FORMATS:
        raise InputError(f"image {path.name}: got the ending {path.suffix!r}, want one of {', '.join(_FORMATS)}")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = explained(ranked, titles, most)
    spots = _spots(rows)
    figure, panel = pyplot.subplots(figsize=(11, max(3.0, 0.42 * len(rows) + 1)))
    _edges(panel, ranked, spots)
    for row in rows:
        x, y = spots[row.id]
        area = 60 + 900 * row.share  # square points
        panel.scatter([x], [y], s=area, color=str(min(0.8, 0.08 + 0.03 * row.after)), zorder=2,
                      edgecolors="tab:orange" if row.after < row.before else "black", linewidths=1.8)  # fmt: skip
        label = f"{row.after} (was {row.before}) {_short(row.title, _LABEL)}"
        panel.annotate(label, (x, y), xytext=(5 + area**0.5 / 2, 0), textcoords="offset points", va="center",
                       fontsize=8, zorder=3, bbox=_BEHIND_TEXT)  # fmt: skip
    panel.set_xticks([0, 1, 2], ["found", "1 edge away", "2 edges away"])
    panel.set_xlim(-0.25, 2.9)
    panel.set_yticks([])
    panel.set_title(_short(question, 100), fontsize=10)
    if panel.get_legend_handles_labels()[1]:
        panel.legend(title="edges", loc="upper right", fontsize=8)
    figure.text(0.01, 0.005, _KEY, fontsize=8, color="0.35")
    figure.tight_layout()
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text: it can be searched
        figure.savefig(path, dpi=110, metadata=None if path.suffix == ".pdf" else _plain(path.suffix))
    pyplot.close(figure)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def _plain(suffix: str) -> dict[str, None]:
    """No version and no date: the same graph is the same file."""
    return {"Software": None} if suffix == ".png" else {"Date": None, "Creator": None}


def _spots(rows: list[Explained]) -> dict[int, tuple[float, float]]:
    return {row.id: (min(row.hop, 2) + 0.12 * ((row.after - 1) % 3), -float(row.after)) for row in rows}


def _edges(panel: Any, ranked: Ranked, spots: dict[int, tuple[float, float]]) -> None:
    graph = ranked.graph
    for m in _forward(graph.code):
        ends = int(graph.ids[graph.source[m]]), int(graph.ids[graph.target[m]])
        if all(end in spots for end in ends):
            (x0, y0), (x1, y1) = (spots[end] for end in ends)
            weight, relation = float(graph.messages[m, 0]), (int(graph.code[m]) - 1) % len(RELATIONS)
            name = RELATIONS[relation]
            label = "" if name in panel.get_legend_handles_labels()[1] else name
            panel.plot([x0, x1], [y0, y1], color=f"C{relation}", alpha=0.6, linewidth=0.4 + 1.6 * weight, zorder=1,
                       label=label)  # fmt: skip


def _forward(code: NDArray[np.int64]) -> Rows:
    """Messages along an edge's own direction: each edge once."""
    return np.flatnonzero((code > SELF) & (code <= len(RELATIONS))).astype(np.int64)

"""A night's attention: trained, judged on held-out questions beside the champion's, and put into the router's bundle.

Knows nothing of MLflow, of Prefect or of steps. Three outcomes: a new part that passed its gate, the champion's part
unchanged, or none. Whatever comes of it, the router's own parts stay byte for byte what they were.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ruvllm.attention.model import AttentionModel, from_bytes, to_bytes
from ruvllm.attention.part import FILE, PASSED, Carrier, carried
from ruvllm.attention.shape import Shape
from ruvllm.errors import BundleError, LearningError
from ruvllm.evaluation.retrieval import ndcg_at, recall_at
from ruvllm.learning.attention import AttentionConfig, train
from ruvllm.learning.attention_gate import AttentionPolicy, Held, Verdict, judge
from ruvllm.learning.attention_lessons import HeldOut, Lessons
from ruvllm.progress import Progress, silent
from ruvllm.router.bundle import MANIFEST_FILE, bundle_files, read_bundle, verify_bundle
from ruvllm.router.durable import write_folder
from ruvllm.router.manifest import FileEntry, parse_manifest

NEW, UNCHANGED, NONE = "new", "unchanged", "none"
_DEPTH, _FEW = 10, 5  # of nDCG, which the gain is shown on; of recall, which must not fall


@dataclass(frozen=True, eq=False)
class Part:
    """What goes into the bundle and why. `tables` are the gate's, by who was judged."""

    kind: str  # new | unchanged | none
    why: str
    content: bytes | None = None
    tables: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"part": self.kind, "why": self.why, "tables": dict(self.tables), "figures": dict(self.figures)}


@dataclass(frozen=True, eq=False)
class Champion:
    """The part that serves now, as its file has it."""

    model: AttentionModel
    content: bytes


def champion_part(router: Carrier | None, encoder: str) -> Champion | None:
    """The part of the promoted router, where it has one for this encoder.

    Raises:
        ArtifactError: its file is missing or altered.
    """
    model = carried(router)
    if router is None or router.path is None or model is None or model.encoder != encoder:
        return None
    content = (router.path / FILE).read_bytes()
    return Champion(from_bytes(content, router.manifest.files[FILE].sha256), content)


def choose_part(
    lessons: Lessons,
    champion: Champion | None,
    encoder: str,
    dimension: int,
    version: str,
    policy: AttentionPolicy | None = None,
    config: AttentionConfig | None = None,
    progress: Progress = silent,
) -> Part:
    """Train on the lessons and say what the next bundle carries; of two that pass, the better on the held-out.

    A champion's part that does not pass on tonight's held-out questions is dropped; where they are too few to judge by,
    it stays.
    """
    policy = policy or AttentionPolicy()
    if len(lessons.held) < policy.least_questions:
        few = f"{len(lessons.held)} held-out questions with gold in memory, want {policy.least_questions}"
        return _kept(champion, few)
    old = _judged(lessons.held, champion.model, policy) if champion else None
    try:
        made = train(lessons.train, Shape(dimension), config, progress)
    except LearningError as error:
        return _settled(champion, old, str(error), {})
    new = AttentionModel(made.shape, made.arrays, encoder, version)
    verdict = _judged(lessons.held, new, policy)
    tables = {"new": verdict.table()}
    if not verdict.passed:
        return _settled(champion, old, f"the new one was refused: {_first_reason(verdict)}", tables)
    if champion is not None and old is not None and old.passed and _mean(old) >= _mean(verdict):
        return _settled(champion, old, "the new one is no better", tables)
    figures = {**_figures(verdict), "questions": float(made.questions), "seconds": made.seconds}
    content = to_bytes(replace(new, metrics={PASSED: 1.0, **_figures(verdict), "questions": float(made.questions)}))
    return Part(NEW, "it passed its gate", content, tables, figures)


def _kept(champion: Champion | None, why: str) -> Part:
    if champion is None:
        return Part(NONE, why)
    return Part(UNCHANGED, f"{why}; the champion's part stays", champion.content)


def _settled(champion: Champion | None, old: Verdict | None, why: str, tables: Mapping[str, str]) -> Part:
    """Without a new part: the champion's where it still passes."""
    if champion is None or old is None:
        return Part(NONE, why, tables=tables)
    tables = {**tables, "champion": old.table()}
    if not old.passed:
        return Part(NONE, f"{why}; the champion's no longer passes: {_first_reason(old)}", tables=tables)
    return Part(UNCHANGED, why, champion.content, tables, _figures(old))


def _judged(held: Sequence[HeldOut], model: AttentionModel, policy: AttentionPolicy) -> Verdict:
    """By order (nDCG@10), where a gain has to be shown, and by recall@5, which must not fall."""
    runtime = model.runtime()
    rankings = {"attention": [each.graph.ids[runtime.attend(each.graph).order].tolist() for each in held],
                "plain search": [list(each.plain) for each in held],
                "before attention": [_before(each) for each in held]}  # fmt: skip
    gold = [each.gold for each in held]
    order = {name: [ndcg_at(r, g, _DEPTH) for r, g in zip(rows, gold, strict=True)] for name, rows in rankings.items()}
    few = {name: [recall_at(r, g, _FEW) for r, g in zip(rows, gold, strict=True)] for name, rows in rankings.items()}
    return judge(
        [Held(f"nDCG@{_DEPTH}", order.pop("attention"), order),
         Held(f"recall@{_FEW}", few.pop("attention"), few, gain_expected=False)],
        policy,
    )  # fmt: skip


def _before(each: HeldOut) -> list[int]:
    ids: list[int] = each.graph.ids[np.argsort(-each.graph.prior, kind="stable")].tolist()
    return ids


def _mean(verdict: Verdict) -> float:
    return verdict.rows[0].attention.mean


def _figures(verdict: Verdict) -> dict[str, float]:
    first = verdict.rows[0]
    return {"held": float(first.gain.n), "ndcg": first.attention.mean, "gain": first.gain.mean,
            "gain_low": first.gain.low}  # fmt: skip


def _first_reason(verdict: Verdict) -> str:
    return next(f"{row.name} {row.reason}" for row in verdict.rows if row.reason)


# --- the bundle -------------------------------------------------------------------------------------------------------


def pack(bundle: Path, part: bytes, into: Path) -> str:
    """A copy of `bundle` with this part in it, whole or not at all; returns its digest. What lay at `into` goes.

    Raises:
        BundleError: `bundle` is not whole, or the copy cannot be written.
        ArtifactError: the part would not be read back.
    """
    from_bytes(part)
    files = bundle_files(bundle, read_bundle(bundle).sha256)
    manifest = parse_manifest(files[MANIFEST_FILE])
    entry = FileEntry(hashlib.sha256(part).hexdigest(), len(part))
    complete = replace(manifest, files={**manifest.files, FILE: entry}).to_json()
    shutil.rmtree(into, ignore_errors=True)
    try:
        write_folder(into, {**files, FILE: part, MANIFEST_FILE: complete})
    except OSError as error:
        raise BundleError(f"bundle {into}: not written ({error.strerror or error}); free some space") from error
    digest = hashlib.sha256(complete).hexdigest()
    verify_bundle(into, digest)
    return digest


def part_in(bundle: Path) -> bytes | None:
    """The part's bytes in a bundle; None where it has none.

    Raises:
        BundleError: the bundle is not whole.
    """
    return bundle_files(bundle, read_bundle(bundle).sha256).get(FILE)


def describe(lessons: Lessons, part: Part) -> dict[str, Any]:
    """Plain figures of a night's attention."""
    return {**part.as_dict(), "lessons": dict(lessons.counts), "held": len(lessons.held),
            "config": asdict(AttentionConfig())}  # fmt: skip

"""What judges said and what their word is worth, in Postgres, under the tenant's rules. Knows nothing of models."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.rows import dict_row

from ruvllm.database.pool import Database
from ruvllm.inference.judge.calibration import Curve
from ruvllm.inference.judge.records import Item, Verdict


@dataclass(frozen=True)
class Named:
    """Which judge: `version` covers the model file and the prompt."""

    version: str
    tier: str
    model_sha256: str
    template_hash: str


@dataclass(frozen=True)
class Calibration:
    """A judge held against gold, as it is stored. `refusals` empty: it may label."""

    judge: Named
    data_digest: str
    n: int
    curve: Curve
    agreement: tuple[Mapping[str, Any], ...]  # a data set each
    refusals: tuple[str, ...]
    id: int = 0  # 0: not stored yet
    calibrated_at: datetime | None = None


class JudgeStore:
    """One tenant's judgements."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def verdicts(self, judge: str, items: Iterable[Item]) -> dict[str, Verdict]:
        """What the judge said of these already, by the item's key."""
        keys = [item.key for item in items]
        with self.database.transaction() as connection:
            rows = connection.execute(_VERDICTS, {"judge": judge, "items": keys}).fetchall()
        return {key: Verdict(tuple(given) if given else None, reason) for key, given, reason in rows}

    def keep(self, judge: str, said: Mapping[str, Verdict]) -> None:
        """Store verdicts by the item's key, in one transaction; one that is there stays."""
        rows = [
            {"tenant": self.database.tenant, "judge": judge, "item": key, "reason": verdict.reason,
             "probabilities": list(verdict.probabilities) if verdict.probabilities else None}
            for key, verdict in said.items()
        ]  # fmt: skip
        with self.database.transaction() as connection:
            connection.cursor().executemany(_KEEP, rows)

    def add(self, calibration: Calibration) -> int:
        """Store a calibration; from now on it is the judge's. Returns its number."""
        with self.database.transaction() as connection:
            row = connection.execute(_ADD, self._row(calibration)).fetchone()
        assert row is not None  # RETURNING
        return int(row[0])

    def retract(self) -> int:
        """Take out what judges labelled for the oracle that are refused by now; how many outcomes that were."""
        with self.database.transaction() as connection:
            return connection.execute(_RETRACT).rowcount

    def newest(self, judge: str) -> Calibration | None:
        """The calibration that counts."""
        return next(iter(self._read(_NEWEST, {"judge": judge})), None)

    def calibrations(self) -> Sequence[Calibration]:
        """All of the tenant's, the newest first."""
        return self._read(_ALL, {})

    def _read(self, query: str, values: Mapping[str, object]) -> list[Calibration]:
        with self.database.transaction() as connection:
            rows = connection.cursor(row_factory=dict_row).execute(query.encode(), values).fetchall()
        return [_from_row(row) for row in rows]

    def _row(self, of: Calibration) -> dict[str, object]:
        return {
            "tenant": self.database.tenant,
            "judge": of.judge.version,
            "tier": of.judge.tier,
            "model_sha256": of.judge.model_sha256,
            "template_hash": of.judge.template_hash,
            "data_digest": of.data_digest,
            "n": of.n,
            "scores": list(of.curve.scores),
            "qualities": list(of.curve.qualities),
            "agreement": json.dumps(of.agreement),
            "refusals": list(of.refusals),
        }


def _from_row(row: Mapping[str, Any]) -> Calibration:
    return Calibration(
        judge=Named(row["judge"], row["tier"], row["model_sha256"], row["template_hash"]),
        data_digest=row["data_digest"],
        n=row["n"],
        curve=Curve(tuple(row["scores"]), tuple(row["qualities"])),
        agreement=tuple(row["agreement"]),
        refusals=tuple(row["refusals"]),
        id=row["id"],
        calibrated_at=row["calibrated_at"],
    )


_VERDICTS = """
    SELECT item, probabilities, reason FROM learning.judge_scores
    WHERE judge = %(judge)s AND item = ANY(%(items)s)
"""
_KEEP = """
    INSERT INTO learning.judge_scores (tenant, judge, item, probabilities, reason)
    VALUES (%(tenant)s, %(judge)s, %(item)s, %(probabilities)s, %(reason)s)
    ON CONFLICT (tenant, judge, item) DO NOTHING
"""
_ADD = """
    INSERT INTO learning.judge_calibrations (tenant, judge, tier, model_sha256, template_hash, data_digest, n, scores,
        qualities, agreement, refusals)
    VALUES (%(tenant)s, %(judge)s, %(tier)s, %(model_sha256)s, %(template_hash)s, %(data_digest)s, %(n)s, %(scores)s,
        %(qualities)s, %(agreement)s, %(refusals)s)
    RETURNING id
"""
_NEWEST = "SELECT * FROM learning.judge_calibrations WHERE judge = %(judge)s ORDER BY id DESC LIMIT 1"
_ALL = "SELECT * FROM learning.judge_calibrations ORDER BY id DESC"
_RETRACT = """
    DELETE FROM learning.oracle_runs r USING learning.judge_calibrations c
    WHERE c.id = r.judge_calibration
      AND '{}' <> (SELECT n.refusals FROM learning.judge_calibrations n
                   WHERE n.judge = c.judge ORDER BY n.id DESC LIMIT 1)
"""

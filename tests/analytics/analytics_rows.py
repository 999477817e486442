"""Rows that the views read, made by SQL: answers over some days, what the oracle ran, nights, a promotion."""

from __future__ import annotations

import json
from typing import Any

from psycopg import Connection

TIERS = ("smollm2-135m", "gemma3-270m")

_INTERACTIONS = """
    INSERT INTO serving.interactions (request_id, tenant, asked_at, question, answer, domain, tier, context_bin,
        temperature, top_p, decided_by, confidence, propensity, router_version, ladder, layout_hash, features,
        prompt_tokens, completion_tokens, cost, stage_ms, total_ms, quality, quality_source)
    SELECT 'r' || i, %(tenant)s, now() - i * (%(days)s * interval '1 day' / %(n)s), 'question ' || i %% %(questions)s,
           'answer ' || i, 'domain ' || i %% 4, (ARRAY['smollm2-135m', 'gemma3-270m'])[1 + i %% 2],
           (ARRAY[256, 512])[1 + i / 2 %% 2], 0, 1, (ARRAY['champion', 'fallback', 'explore'])[1 + i %% 3],
           (i %% 100) / 100.0, 0.5, (i %% 2)::text, 'packaged', 'hash', array_fill(0.5::real, ARRAY[128]), 100, 10,
           0.1 + (i %% 2) * 0.1, '{"search": 2.0}', 100 + i %% 2000, CASE WHEN i %% 5 > 0 THEN (i %% 10) / 10.0 END,
           CASE WHEN i %% 5 > 0 THEN 'gold' END
    FROM generate_series(1, %(n)s) AS i
"""
_AFTER = """
    INSERT INTO serving.feedback (tenant, interaction, rating)
        SELECT tenant, id, 1 + id %% 5 FROM serving.interactions WHERE id %% 7 = 0 AND tenant = %(tenant)s;
    INSERT INTO serving.outbox (tenant, kind, interaction, idempotency_key, outcome, done_at)
        SELECT tenant, 'score', id, tenant || id, CASE WHEN id %% 2 = 0 THEN 'written' END,
               CASE WHEN id %% 2 = 0 THEN now() + interval '1 s' END
        FROM serving.interactions WHERE tenant = %(tenant)s;
    INSERT INTO learning.oracle_queries (key, tenant, cycle_id, question, gold, kind, domain, split, grouping,
        layout_hash, features, embedding, retrieved)
        SELECT %(tenant)s || i, %(tenant)s, 'night-0001', 'question ' || i, '{}', 'fact', 'domain ' || i %% 4,
               CASE WHEN i %% 3 = 0 THEN 'test' ELSE 'train' END, 'land', 'hash', '{}', '{}', '{}'
        FROM generate_series(0, %(questions)s / 2) AS i;
    INSERT INTO learning.oracle_runs (tenant, query, ladder, tier, model_sha256, prompt_version, context_bin, cycle_id,
        answer, quality, latency_s, spent_s, prompt_tokens, completion_tokens, cost)
        SELECT q.tenant, q.key, 'packaged', t.tier, 'sha', '1', b.bin, 'night-0001', 'x', 0.5, 1, 1, 100, 10, 0.1
        FROM learning.oracle_queries AS q, (VALUES ('smollm2-135m'), ('gemma3-270m')) AS t (tier),
             (VALUES (256), (512)) AS b (bin) WHERE q.tenant = %(tenant)s;
    INSERT INTO learning.labels (query, tenant, ladder, latency_weight, cost_weight, tier, context_bin, temperature,
        top_p, utilities)
        SELECT key, tenant, 'packaged', 0.1, 0.5, 'gemma3-270m', 512, 0, 1,
               '{"smollm2-135m": {"256": 1.0, "512": 2.0}, "gemma3-270m": {"256": 3.0, "512": 4.0}}'
        FROM learning.oracle_queries WHERE tenant = %(tenant)s
"""


def fill(connection: Connection, tenant: str, n: int = 60, days: int = 3, questions: int = 20) -> None:
    """`n` answers over the last `days`, a third of the questions known to the oracle; utilities 1 to 4 by choice."""
    values = {"tenant": tenant, "n": n, "days": days, "questions": questions}
    connection.execute(_INTERACTIONS, values)
    for statement in _AFTER.split(";\n"):
        connection.execute(statement.encode(), values)


def add_night(connection: Connection, tenant: str, night: int, promoted: bool = True) -> str:
    """A finished night with the steps that reports and views read; its cycle id."""
    cycle_id = f"night-{night:04d}-{tenant}"
    connection.execute(
        "INSERT INTO learning.cycles (id, tenant, night, started_at, finished_at)"
        " VALUES (%s, %s, %s, now() - interval '2 hours', now() - interval '1 hour')",
        (cycle_id, tenant, night),
    )
    for step, result in night_results(night, promoted).items():
        connection.execute(
            "INSERT INTO learning.steps (cycle_id, tenant, step, result, seconds) VALUES (%s, %s, %s, %s, 2.5)",
            (cycle_id, tenant, step, json.dumps(result)),
        )
    if promoted:
        connection.execute(
            "INSERT INTO registry.ledger (action, version, previous, sha256, artifact_uri, approved_by, gates,"
            " cycle_id) VALUES ('promote', %s, %s, %s, 'file:///nowhere', 'alice', '[]', %s)",
            (str(night), str(night - 1) if night > 1 else None, f"{night:064x}", cycle_id),
        )
    return cycle_id


def night_results(night: int, promoted: bool = True) -> dict[str, dict[str, Any]]:
    """Results of steps, by name, as night.py makes them."""
    names = ("oracle", "fastgrnn", "champion", "best-fixed", "always-big")
    policies = [_policy(name, place * 0.1) for place, name in enumerate(names)]
    gate = {
        "name": "not worse than the champion", "measured": -0.1, "threshold": 0.1, "direction": "at most", "n": 57,
        "interval": [-0.2, 0.05], "outcome": "pass", "blocks": True, "reason": "",
    }  # fmt: skip
    return {
        "day": {"questions": 24, "tiers": [], "writeback": {"written": 5}},
        "collect": {"queries": 30, "runs": 240},
        "evaluate": {
            "n_train": 105, "n_test": 57, "regret_before": 0.9 / night, "regret_after": 0.6 / night,
            "regret_after_interval": [0.3 / night, 1.0 / night], "accuracy_tier": 0.8, "policies": policies,
        },
        "propose": {"version": str(night), "run_id": "run", "sha256": "s", "gates": [gate]},
        "promote": {"promoted": promoted, "version": str(night), "why": "" if promoted else "waits for a reviewer"},
        "maintain": {"merged_exact": 2, "merged_near": 1, "counts": {"nodes": 100 * night, "edges": 300 * night}},
    }  # fmt: skip


def _policy(name: str, regret: float) -> dict[str, Any]:
    return {
        "policy": name, "utility": 3.0 - regret, "regret": regret, "low": regret - 0.02, "high": regret + 0.02,
        "quality": 3.5, "latency_s": 0.5, "cost": 0.2 + regret, "accuracy_tier": 0.9, "accuracy_pair": 0.8,
    }  # fmt: skip

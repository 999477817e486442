"""docs/analysts.md: each of its queries runs as an analyst and finds something; each view is one tenant's."""

from __future__ import annotations

import pytest
from psycopg import Connection, errors

from ruvllm.settings import PROJECT_ROOT

PAGE = PROJECT_ROOT / "docs" / "analysts.md"
VIEWS = (
    "decisions", "days", "latency", "routers", "feedback", "settled", "oracle", "labels", "regret", "nights", "steps",
    "policies", "gates", "promotions", "reads", "relations", "merges",
)  # fmt: skip


def cookbook() -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return [block.split("```")[0].strip() for block in text.split("```sql\n")[1:]]


def test_every_query_of_the_cookbook_finds_something(session: Connection) -> None:
    queries = cookbook()
    assert len(queries) >= 15
    for query in queries:
        assert session.execute(query.encode()).fetchall(), query


def test_the_page_names_every_view() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [view for view in VIEWS if f"| `{view}` |" not in text] == []


def test_figures_are_those_of_the_rows(session: Connection) -> None:
    """Of 60 answers a fifth is not scored, and half of each tier; utilities of the oracle are 1 to 4 by choice."""
    assert session.execute("SELECT sum(answers), sum(scored) FROM days").fetchone() == (60, 48)
    assert session.execute("SELECT tier, sum(answers) FROM latency GROUP BY tier ORDER BY tier").fetchall() == [
        ("gemma3-270m", 30),
        ("smollm2-135m", 30),
    ]
    found = session.execute("SELECT DISTINCT tier, context_bin, utility_regret FROM regret ORDER BY 3").fetchall()
    assert found == [
        ("gemma3-270m", 512, 0.0), ("gemma3-270m", 256, 1.0), ("smollm2-135m", 512, 2.0), ("smollm2-135m", 256, 3.0),
    ]  # fmt: skip
    nights = session.execute("SELECT night, regret_after, promoted, why_not, nodes FROM nights ORDER BY night")
    assert nights.fetchall() == [(1, 0.6, True, "", 100), (2, 0.3, False, "waits for a reviewer", 200)]
    assert session.execute("SELECT low, high, n, outcome FROM gates WHERE night = 1").fetchone() == (
        -0.2, 0.05, 57, "pass",
    )  # fmt: skip
    assert session.execute("SELECT nodes, into_nodes FROM merges").fetchall() == [(1, 1)]
    assert session.execute("SELECT rel, edges FROM relations ORDER BY rel").fetchall() == [("Cites", 1), ("Follows", 1)]
    assert session.execute("SELECT action, version, previous FROM promotions").fetchall() == [("promote", "1", None)]


def test_another_tenants_rows_are_nowhere(session: Connection, owner: Connection) -> None:
    assert session.execute("SELECT count(*) FROM decisions").fetchone() == (60,)
    assert session.execute("SELECT count(*) FROM settled").fetchone() == (60,)
    assert session.execute("SELECT night FROM nights WHERE night = 7").fetchone() is None
    with pytest.raises(errors.InsufficientPrivilege):
        session.execute("SELECT * FROM serving.interactions")
    owner.execute("DELETE FROM memory.analysts WHERE login = 'ana_views'")
    for view in VIEWS:
        assert session.execute(f"SELECT count(*) FROM {view}".encode()).fetchone() == (0,), view
    owner.execute("INSERT INTO memory.analysts VALUES ('ana_views', 'default')")


def test_views_are_guarded_and_belong_to_nobody(owner: Connection) -> None:
    rows = owner.execute(
        "SELECT relname, relowner::regrole::text, reloptions FROM pg_class"
        " WHERE relnamespace = 'analytics'::regnamespace AND relname = ANY(%s)",
        [list(VIEWS)],
    ).fetchall()
    assert sorted(row[0] for row in rows) == sorted(VIEWS)
    assert {(row[1], *row[2]) for row in rows} == {("ruvllm_views", "security_barrier=true")}


def test_a_days_figures_come_from_the_index_alone(session: Connection, owner: Connection) -> None:
    """Rows of interactions are wide: a plan that reads them takes seconds at a million answers."""
    owner.execute("VACUUM ANALYZE serving.interactions")
    session.execute("SET enable_seqscan = off")  # 100 rows are read faster than an index; a million are not
    plan = "\n".join(row[0] for row in session.execute("EXPLAIN SELECT * FROM days"))
    assert "Index Only Scan using interactions_day" in plan

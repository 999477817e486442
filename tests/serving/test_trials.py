"""Shadow and canary: a stable share, decisions logged and unserved, a stop that comes when and only when it must."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruvllm.answering.interactions import Interactions
from ruvllm.database.pool import Database
from ruvllm.errors import DatabaseError, InputError
from ruvllm.inference.tiers import Ladder, load_catalogue
from ruvllm.router.decision import Decision
from ruvllm.router.fake import write_random_bundle
from ruvllm.router.runtime import RouterRuntime
from ruvllm.router.store import BundleStore
from ruvllm.serving import canary
from ruvllm.serving.arms import Arm, Sample, Tolerance, radius, worse
from ruvllm.serving.canary import CANDIDATE, CHAMPION, Candidates
from ruvllm.settings import Settings
from tests.serving.test_spool import row

LADDER = Ladder("packaged", tuple(load_catalogue()["packaged"]), "of a test")
DECISION = Decision(0, 512, 0.0, 1.0, 0.875, 0.9, "champion", "candidate", (0.9, 0.1, 0, 0), (0, 1, 0, 0, 0))


def fits(runtime: RouterRuntime) -> None:
    runtime.require("packaged", ("smollm2-135m", "gemma3-270m"), "test-encoder")


@pytest.fixture
def candidates(settings: Settings) -> Candidates:
    return Candidates(BundleStore(settings.router_dir / "trial"), settings, LADDER, fits)


def on_trial(database: Database, folder: Path, share: float, **more: object) -> int:
    sha256 = write_random_bundle(folder, version="candidate", **more)  # type: ignore[arg-type]
    return canary.start(database, "7", sha256, str(folder), share)


def answered(database: Database, version: str, quality: float, count: int, start: int = 0) -> None:
    """Answers of a router whose quality is known."""
    interactions = Interactions(database)
    for n in range(start, start + count):
        interactions.record(row(f"{version}-{n}", router_version=version))
    with database.transaction() as connection:
        connection.execute(
            "UPDATE serving.interactions SET quality = %s, quality_source = 'gold' WHERE router_version = %s",
            (quality, version),
        )


# --- the two arms -----------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e3, 1e3), max_size=40), st.lists(st.floats(-1e3, 1e3), max_size=40))
def test_samples_join_to_what_numpy_says(left: list[float], right: list[float]) -> None:
    joined = Sample.of(left).joined(Sample.of(right))
    values = np.array(left + right)
    assert joined.n == len(values)
    if len(values):
        assert joined.mean == pytest.approx(values.mean(), abs=1e-6)
        assert joined.variance == pytest.approx(values.var(), abs=1e-3, rel=1e-6)


def test_intervals_cover_at_all_looks_together() -> None:
    """500 runs of 300 looks each: the true mean is ever left out in at most 5 % of the runs (with a margin for chance).

    The interval for one look, 1.96 standard errors, fails the same test: the test can fail.
    """
    rng = np.random.default_rng(5)
    left_out = {"sequence": 0, "one look": 0}
    for _ in range(500):
        values = rng.normal(size=300)
        sums, squares, n = np.cumsum(values), np.cumsum(values**2), np.arange(1, 301)
        means, variances = sums / n, squares / n - (sums / n) ** 2
        looks = slice(29, None)
        wide = [radius(Sample(int(k), m, v), 0.05) for k, m, v in zip(n, means, variances, strict=True)]
        narrow = 1.96 * np.sqrt(variances / n)
        left_out["sequence"] += bool((np.abs(means) > wide)[looks].any())
        left_out["one look"] += bool((np.abs(means) > narrow)[looks].any())
    assert left_out["sequence"] <= 0.05 * 500 + 10
    assert left_out["one look"] > 0.1 * 500


def test_worse_wants_a_deficit_beyond_the_bound_and_enough_of_it() -> None:
    many, few = 2000, 20
    good, bad = Sample(many, 0.9, 0.04), Sample(many, 0.7, 0.04)
    assert "quality: 0.700" in str(worse(Arm(quality=good), Arm(quality=bad), Tolerance()))
    assert worse(Arm(quality=good), Arm(quality=Sample(many, 0.86, 0.04)), Tolerance()) is None  # within the bound
    assert worse(Arm(quality=good), Arm(quality=Sample(few, 0.1, 0.04)), Tolerance()) is None  # too few
    assert worse(Arm(quality=bad), Arm(quality=good), Tolerance()) is None  # better
    slow = Arm(log_seconds=Sample(many, np.log(2.0), 0.1))
    fast = Arm(log_seconds=Sample(many, np.log(1.0), 0.1))
    assert str(worse(fast, slow, Tolerance())).startswith("latency: 2.00 s")
    assert worse(slow, fast, Tolerance()) is None
    failing, sound = Arm(failed=Sample.of_events(200, many)), Arm(failed=Sample.of_events(0, many))
    assert str(worse(sound, failing, Tolerance())).startswith("error rate: 0.100")
    assert worse(Arm(), Arm(), Tolerance()) is None


def test_equal_arms_are_hardly_ever_stopped_and_bad_ones_nearly_always() -> None:
    """200 runs of 400 looks each, every answer's quality 0 or 1."""
    rng = np.random.default_rng(3)

    def stopped(quality: float) -> float:
        runs = 0
        for _ in range(200):
            held, tried = (np.cumsum(rng.random(400) < q) for q in (0.8, quality))
            for n in range(40, 401, 10):
                arms = [Arm(Sample.of_events(int(hits[n - 1]), n)) for hits in (held, tried)]
                if worse(*arms, Tolerance()) is not None:
                    runs += 1
                    break
        return runs / 200

    assert stopped(0.8) <= 0.05
    assert stopped(0.4) >= 0.99


# --- the share --------------------------------------------------------------------------------------------------------


def test_a_unit_stays_on_its_side_and_the_share_is_the_share(database: Database, tmp_path: Path) -> None:
    on_trial(database, tmp_path / "b", 0.2)
    trial = canary.newest(database)
    assert trial is not None
    sides = {f"session-{n}": trial.serves(f"session-{n}") for n in range(5000)}
    assert 0.17 < sum(sides.values()) / 5000 < 0.23
    again = canary.newest(database)  # another gateway
    assert again is not None
    assert all(again.serves(unit) == side for unit, side in sides.items())


# --- the mechanism ----------------------------------------------------------------------------------------------------


def test_shadow_decisions_are_logged_under_their_tenant_and_serve_nobody(
    candidates: Candidates, database: Database, tmp_path: Path
) -> None:
    trial = on_trial(database, tmp_path / "b", 0.0)
    candidates.refresh(database, "router-1")
    live = candidates.trial
    assert live is not None
    assert live.runtime.version == "candidate"
    assert not any(live.serves(f"r{n}") for n in range(1000))
    Interactions(database).record(row("r1"))
    candidates.note_shadow("r1", "default", DECISION)
    candidates.note_shadow("r2", "acme", DECISION)
    candidates.refresh(database, "router-1")
    with database.transaction("acme") as connection:
        found = connection.execute("SELECT request_id, tier, context_bin FROM serving.shadow_decisions").fetchall()
    assert found == [("r2", "smollm2-135m", 512)]
    assert canary.agreement(database, trial) == (1, 1)


def test_the_buffer_of_shadows_is_bounded(candidates: Candidates, database: Database, tmp_path: Path) -> None:
    candidates.note_shadow("before", "default", DECISION)  # no trial: nothing is kept
    on_trial(database, tmp_path / "b", 0.0)
    candidates.refresh(database, "router-1")
    for n in range(1010):
        candidates.note_shadow(f"r{n}", "default", DECISION)
    assert candidates.dropped == 10


@pytest.mark.parametrize(("champion", "candidate", "stops"), [(1.0, 0.2, True), (0.8, 0.8, False), (0.2, 1.0, False)])
def test_a_canary_stops_for_good_when_its_quality_falls(
    candidates: Candidates, database: Database, tmp_path: Path, champion: float, candidate: float, stops: bool
) -> None:
    answered(database, "router-1", 0.0, 5, start=1000)  # before the trial: they do not count
    on_trial(database, tmp_path / "b", 0.5)
    candidates.refresh(database, "router-1")
    answered(database, "candidate", candidate, 60)
    with database.transaction() as connection:
        connection.execute("UPDATE serving.interactions SET asked_at = now() - interval '1 day' WHERE quality = 0")
    answered(database, "router-1", champion, 60)
    candidates.refresh(database, "router-1")
    assert (candidates.trial is None) is stops
    assert (canary.newest(database) is None) is stops
    if stops:
        assert "quality" in str(candidates.stopped)
        candidates.refresh(database, "router-1")
        assert candidates.trial is None


def test_a_canary_stops_when_it_is_slow_or_fails(candidates: Candidates, database: Database, tmp_path: Path) -> None:
    for number, (seconds, fails, word) in enumerate([(3.0, 0, "latency"), (1.0, 1, "error rate")]):
        on_trial(database, tmp_path / f"b{number}", 0.5)
        candidates.refresh(database, "router-1")
        for n in range(300):
            candidates.note(CHAMPION, 1.0, error=False)
            candidates.note(CANDIDATE, seconds, error=bool(fails and n % 3 == 0))
        candidates.refresh(database, "router-1")
        assert str(candidates.stopped).startswith(word)


def test_a_candidate_that_became_champion_is_no_candidate(
    candidates: Candidates, database: Database, tmp_path: Path
) -> None:
    on_trial(database, tmp_path / "b", 0.5)
    candidates.refresh(database, "router-1")
    candidates.refresh(database, "candidate")
    assert (candidates.trial, candidates.stopped) == (None, "it became the champion")


def test_a_bad_candidate_is_stopped_and_an_unreachable_one_waits(
    candidates: Candidates, database: Database, tmp_path: Path
) -> None:
    on_trial(database, tmp_path / "other", 0.5, tiers=("other", "names", "", ""))
    candidates.refresh(database, "router-1")
    assert "not usable: router candidate: trained for ladder" in str(candidates.stopped)
    canary.start(database, "8", "0" * 64, "mlflow-artifacts:/nowhere", 0.5)
    candidates.refresh(database, "router-1")
    assert "MLFLOW_TRACKING_URI" in str(candidates.trouble)
    assert canary.newest(database) is not None  # it waits for the registry
    assert candidates.trial is None


def test_a_stop_holds_though_postgres_was_away_when_it_came(
    candidates: Candidates, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_trial(database, tmp_path / "b", 0.5)
    candidates.refresh(database, "router-1")

    def away(*_: object) -> bool:
        raise DatabaseError("away")

    with monkeypatch.context() as patched:
        patched.setattr(canary, "stop", away)
        with pytest.raises(DatabaseError):
            candidates.refresh(database, "candidate")
    assert candidates.trial is None
    candidates.refresh(database, "router-1")
    assert candidates.trial is None
    assert canary.newest(database) is None


def test_a_new_trial_takes_the_place_of_the_old(candidates: Candidates, database: Database, tmp_path: Path) -> None:
    on_trial(database, tmp_path / "a", 0.0)
    second = on_trial(database, tmp_path / "b", 0.1, seed=3)
    candidates.refresh(database, "router-1")
    assert candidates.trial is not None
    assert candidates.trial.trial.id == second
    with pytest.raises(InputError, match=r"share of a trial: got 1\.5"):
        canary.start(database, "9", "0" * 64, "x", 1.5)

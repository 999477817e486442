"""`ruvllm router refine`: rated answers become a candidate in the registry, gated and reviewed as any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from ruvllm.answering.interactions import Interaction, Interactions
from ruvllm.commands.router import app
from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.errors import LearningError
from ruvllm.inference.types import BINS, ROUTED_BINS
from ruvllm.learning.command import single_thread
from ruvllm.learning.config import load_config
from ruvllm.learning.fake import TIERS, fake_arrays, write_fake_snapshot
from ruvllm.learning.inputs import Inputs
from ruvllm.learning.train import train, write
from ruvllm.nightly import refining
from ruvllm.nightly.consolidation import consolidate_champion
from ruvllm.nightly.refining import Small, refine_champion
from ruvllm.registry import promotion
from ruvllm.registry.gates import load_policy
from ruvllm.registry.package import register_candidate
from ruvllm.router.decision import Allowed
from ruvllm.router.layout import LAYOUT
from ruvllm.router.policy import Policy
from ruvllm.router.runtime import RouterRuntime
from ruvllm.settings import PROJECT_ROOT, Settings
from tests.registry.conftest import make_report, migrated_mlflow, registry_settings

__all__ = ["migrated_mlflow", "registry_settings"]  # fixtures of another folder

NAMES = TIERS[:2]
NIGHT = "night-0001-abcdef12"


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a night: a snapshot and the router that was trained on it."""
    single_thread()
    folder = tmp_path_factory.mktemp("nights") / NIGHT
    config = load_config(PROJECT_ROOT / "params.yaml")
    config = replace(config, training=replace(config.training, steps=20, folds=2))
    snapshot = write_fake_snapshot(folder / "snapshot.npz", fake_arrays(30, 12))
    write(train(snapshot, config), config, Inputs(NIGHT, "2026-01-01T00:00:00+00:00"), folder / "bundle")
    return folder


@pytest.fixture
def place(
    registry_settings: Settings,
    database: Database,
    night: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> SimpleNamespace:
    """A promoted and consolidated champion, and 80 rated answers of it."""
    settings = registry_settings
    folder = settings.state_dir / "cycles" / NIGHT
    shutil.copytree(night, folder)
    version = register_candidate(settings, database, folder / "bundle", make_report(), NIGHT).version
    promotion.approve(settings, version, "alice")
    promotion.promote(settings, database, version)
    consolidate_champion(settings, database, NIGHT)
    runtime = RouterRuntime.load(folder / "bundle")
    made = SimpleNamespace(
        settings=settings, database=database, embedder=EmbeddingAdapter(HashingEncoder(16)), champion=lambda: runtime,
        ladder=SimpleNamespace(name="packaged", names=NAMES),
    )  # fmt: skip

    @contextmanager
    def opened(settings: Settings) -> Iterator[SimpleNamespace]:
        yield made

    monkeypatch.setattr(refining, "open_workplace", opened)
    answer(database, runtime, "first", 80)
    return made


def answer(database: Database, runtime: RouterRuntime, name: str, n: int) -> None:
    """Answers of the exploring champion; only those of the small tier are any good."""
    rng = np.random.default_rng(len(name))
    policy = Policy(runtime, [True, True, False, False], 0.5, rng, ROUTED_BINS)
    store = Interactions(database)
    for number in range(n):
        features = rng.uniform(LAYOUT.low, LAYOUT.high).astype(np.float32)
        decision = policy.decide(features, None, Allowed((True,) * 4, (True,) * len(BINS)))
        row = {
            "request_id": f"{name}-{number}", "cycle_id": None, "session_id": None, "turn": 1, "history": "[]",
            "question": f"{name} {number}?", "answer": "yes", "gold": None, "domain": "", "tier": NAMES[decision.tier],
            "context_bin": decision.context_bin, "temperature": 0.0, "top_p": 1.0, "decided_by": decision.decided_by,
            "confidence": decision.confidence, "propensity": decision.propensity, "router_version": NIGHT,
            "ladder": "packaged", "layout_hash": LAYOUT.hash, "features": features.tolist(), "retrieved": [],
            "similarities": [], "used": [], "writer": "", "prompt_tokens": 1, "cached_tokens": 0,
            "completion_tokens": 1, "cost": 0.3, "stage_ms": '{"generate": 400.0}', "total_ms": 500.0, "degraded": [],
        }  # fmt: skip
        store.record(Interaction(row))
    with database.transaction() as connection:
        connection.execute(
            "UPDATE serving.interactions SET quality = CASE WHEN tier = %s THEN 1 ELSE 0 END,"
            " quality_source = 'feedback' WHERE request_id LIKE %s",
            (NAMES[0], f"{name}-%"),
        )


def test_rated_answers_become_a_gated_candidate_once(place: SimpleNamespace) -> None:
    settings = place.settings
    few = refine_champion(settings, every=81)
    assert few == {"refined": False, "why": "80 new scored answers, want 81"}
    made = refine_champion(settings, every=80)
    assert (made["refined"], made["version"], made["promoted"]) == (True, "2", False)
    assert "waits for a reviewer" in made["why"]
    assert [gate["name"] for gate in made["gates"]] == [gate.name for gate in load_policy().gates]
    assert made["figures"]["refined_through"] == 80
    folder = settings.state_dir / "cycles" / made["router"]
    report = json.loads((folder / "report.json").read_text())
    assert report["off_policy"]["n"] == 16  # the fifth that was not fitted
    assert RouterRuntime.load(folder / "bundle").version == f"refine-{NIGHT}-80"
    assert refine_champion(settings, every=1)["why"] == "0 new scored answers, want 1"
    answer(place.database, place.champion(), "second", 20)
    assert refine_champion(settings, every=20)["version"] == "3"


def test_without_a_person_only_what_is_small_passes_and_only_through_the_gates(place: SimpleNamespace) -> None:
    large = refine_champion(place.settings, every=80, small=Small("policy", 0.0))
    assert large["changed"] > 0  # every answer of the big tier was bad
    assert not large["promoted"]
    assert "of the decisions changed; waits for a reviewer" in large["why"]
    answer(place.database, place.champion(), "second", 20)
    through = refine_champion(place.settings, every=20, small=Small("policy", 1.0))
    stopped = [gate["name"] for gate in through["gates"] if gate["blocks"] and gate["outcome"] != "pass"]
    assert through["promoted"] == (not stopped)
    assert all(name in through["why"] for name in stopped)
    with pytest.raises(LearningError, match="want a name and a share"):
        Small(" ", 0.1)


def test_a_lost_folder_is_named_and_the_verb_says_it_in_one_line(place: SimpleNamespace) -> None:
    said = CliRunner().invoke(app, ["refine", "--every", "500", "--json"])
    assert json.loads(said.stdout)["why"] == "80 new scored answers, want 500"
    shutil.rmtree(place.settings.state_dir / "cycles" / NIGHT / "bundle")
    failed = CliRunner().invoke(app, ["refine"])
    assert failed.exit_code == 1
    assert "does not hold the champion" in failed.output

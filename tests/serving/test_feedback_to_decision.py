"""What users say over HTTP changes what the gateway decides: feedback, refinement, gates and a reviewer, hot swap."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from ruvllm.answering.answer import Answerer, Perception
from ruvllm.answering.interactions import Interactions
from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.inference.fake import FakeModel
from ruvllm.inference.pool import ModelPool
from ruvllm.inference.tiers import Ladder, load_catalogue
from ruvllm.learning.command import single_thread
from ruvllm.learning.config import load_config
from ruvllm.learning.fake import fake_arrays, write_fake_snapshot
from ruvllm.learning.inputs import Inputs
from ruvllm.learning.train import train, write
from ruvllm.memory.store import Memory
from ruvllm.nightly import refining
from ruvllm.nightly.consolidation import consolidate_champion
from ruvllm.nightly.refining import refine_champion
from ruvllm.registry import promotion
from ruvllm.registry.package import register_candidate
from ruvllm.router.runtime import RouterRuntime
from ruvllm.router.store import BundleStore
from ruvllm.serving.service import GatewayService
from ruvllm.settings import PROJECT_ROOT, Settings
from tests.registry.conftest import make_report, migrated_mlflow, registry_settings
from tests.serving.gateway import client_of, serving

__all__ = ["migrated_mlflow", "registry_settings"]  # fixtures of other folders

NIGHT = "night-0001-abcdef12"
ASKED = 60
PATIENCE_S = 60.0
QUESTIONS = [f"What is the capital of country number {n}?" for n in range(200)]


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a night whose vectors are as long as this memory's."""
    single_thread()
    folder = tmp_path_factory.mktemp("nights") / NIGHT
    arrays = fake_arrays(30, 12)
    vectors = np.random.default_rng(0).normal(size=(len(arrays["embedding"]), 384))
    names = [tier.name for tier in load_catalogue()["packaged"]]
    arrays = {**arrays, "embedding": vectors.astype(np.float32), "tiers": np.array([*names, "", ""])}
    config = load_config(PROJECT_ROOT / "params.yaml")
    config = replace(config, training=replace(config.training, steps=20, folds=2))
    snapshot = write_fake_snapshot(folder / "snapshot.npz", arrays)
    write(train(snapshot, config), config, Inputs(NIGHT, "2026-01-01T00:00:00+00:00"), folder / "bundle")
    return folder


@pytest.fixture
def promoted(registry_settings: Settings, database: Database, night: Path) -> Settings:
    """A champion that went through registry, reviewer and gates, consolidated."""
    settings = replace(registry_settings, explore=0.5)
    folder = settings.state_dir / "cycles" / NIGHT
    shutil.copytree(night, folder)
    version = register_candidate(settings, database, folder / "bundle", make_report(), NIGHT).version
    promotion.approve(settings, version, "alice")
    promotion.promote(settings, database, version)
    consolidate_champion(settings, database, NIGHT)
    return settings


@pytest.fixture
def service(promoted: Settings, database: Database, monkeypatch: pytest.MonkeyPatch) -> GatewayService:
    """A gateway that follows the ledger; its models answer at once."""
    embedder = EmbeddingAdapter(HashingEncoder())
    ladder = Ladder("packaged", tuple(load_catalogue()["packaged"]), "for a test")
    pool = ModelPool(promoted, ladder, start=lambda tier: FakeModel(answer=lambda text: "an answer"))
    perception = Perception(promoted, embedder, Memory(database, embedder, promoted))
    answerer = Answerer(promoted, perception, pool, Interactions(database), seed=1)
    made = GatewayService(answerer, database, BundleStore(promoted.router_dir), promoted)
    made.sync()
    place = SimpleNamespace(
        settings=promoted, database=database, embedder=embedder, ladder=ladder,
        champion=lambda: RouterRuntime.load(promoted.state_dir / "cycles" / NIGHT / "bundle"),
    )  # fmt: skip

    @contextmanager
    def opened(settings: Settings) -> Iterator[SimpleNamespace]:
        yield place

    monkeypatch.setattr(refining, "open_workplace", opened)
    return made


def decided(http: httpx.Client) -> Counter[str]:
    """What the router itself would do with the second half of the questions: the likeliest tier, not the explored."""
    found: Counter[str] = Counter()
    for question in QUESTIONS[100:]:
        reply = http.post("/v1/route", json={"model": "auto", "messages": [{"role": "user", "content": question}]})
        chances: dict[str, float] = reply.json()["probabilities"]
        found[max(chances, key=lambda tier: chances[tier])] += 1
    return found


def asked_and_rated(http: httpx.Client, good: str) -> None:
    for question in QUESTIONS[:ASKED]:
        body = {"model": "auto", "messages": [{"role": "user", "content": question}]}
        reply = http.post("/v1/chat/completions", json=body)
        rating = 5 if reply.json()["model"] == good else 1
        said = http.post("/v1/feedback", json={"request_id": reply.headers["x-request-id"], "rating": rating})
        assert said.status_code == 200, said.text


def settle_all(service: GatewayService, database: Database) -> None:
    """The gateway's own worker settles too, and may have taken some of them."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        service.settle()
        with database.transaction() as connection:
            row = connection.execute("SELECT count(*) FROM serving.interactions WHERE quality IS NOT NULL").fetchone()
        if row == (ASKED,):
            return
    raise AssertionError(f"not all of {ASKED} rated answers were settled in {PATIENCE_S:.0f} s")


def test_feedback_changes_a_later_decision(promoted: Settings, service: GatewayService, database: Database) -> None:
    """Users call the chosen tier bad and the explored one good; questions never asked are then decided anew."""
    with serving(promoted, service) as url, client_of(url) as http:
        before = decided(http)
        usual = max(before, key=lambda tier: before[tier])
        other = next(name for name in service.answerer.ladder.names if name != usual)
        asked_and_rated(http, good=other)
        settle_all(service, database)
        made = refine_champion(promoted, every=ASKED)
        assert decided(http) == before  # nothing changes until somebody has approved it
        promotion.approve(promoted, made["version"], "bob", "what users said")
        promotion.promote(promoted, database, made["version"])
        service.sync()
        after = decided(http)
        assert service.answerer.router_version == made["router"]
        assert after[other] >= before[other] + 50

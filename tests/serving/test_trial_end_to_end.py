"""`ruvllm registry trial` to the gateway and back: a canary that serves badly is stopped by what its users say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from typer.testing import CliRunner

from ruvllm.answering.answer import Answer, Answerer, Ask, Perception
from ruvllm.answering.interactions import Interactions
from ruvllm.commands import trials
from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.inference.fake import FakeModel
from ruvllm.inference.pool import ModelPool
from ruvllm.inference.tiers import Ladder, load_catalogue
from ruvllm.learning import attention_part
from ruvllm.memory.store import Memory
from ruvllm.registry import ledger
from ruvllm.registry.ledger import NewRow
from ruvllm.router.fake import write_random_bundle
from ruvllm.router.store import BundleStore
from ruvllm.serving import canary
from ruvllm.serving.service import GatewayService
from ruvllm.settings import Settings


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, database_url: str, tmp_path: Path) -> None:
    """The verbs' database and, in MLflow's place, a candidate in a folder."""
    folder = tmp_path / "candidate"
    sha256 = write_random_bundle(folder, version="candidate", seed=8)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("RUVLLM_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(trials, "_bundle_of", lambda settings, version, serves: (sha256, folder.as_uri()))


@pytest.fixture
def service(settings: Settings, database: Database, tmp_path: Path) -> GatewayService:
    """A gateway whose champion is promoted; its models answer at once."""
    sha256 = write_random_bundle(tmp_path / "champion", version="champion", seed=3)
    with database.transaction() as connection:
        ledger.append(connection, None, NewRow("promote", "1", sha256, (tmp_path / "champion").as_uri(), "tester"))
    embedder = EmbeddingAdapter(HashingEncoder())
    ladder = Ladder("packaged", tuple(load_catalogue()["packaged"]), "for a test")
    pool = ModelPool(settings, ladder, start=lambda tier: FakeModel(answer=lambda text: "Accra"))
    perception = Perception(settings, embedder, Memory(database, embedder, settings))
    answerer = Answerer(settings, perception, pool, Interactions(database), seed=1)
    service = GatewayService(answerer, database, BundleStore(settings.router_dir), settings)
    service.sync()
    assert answerer.router_version == "champion"
    return service


def verb(*arguments: str) -> Any:
    done = CliRunner().invoke(trials.app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def ask(service: GatewayService, count: int, start: int = 0) -> list[Answer]:
    asks = [Ask("What is the capital of Ghana?", session_id=f"s{n}") for n in range(start, start + count)]
    return [service.answerer.answer(each) for each in asks]  # type: ignore[attr-defined]  # an Answerer


def deciders(answers: list[Answer]) -> set[str]:
    return {answer.decision.router_version for answer in answers}


def test_a_canary_whose_answers_are_called_bad_is_stopped_and_serves_nobody_any_more(
    service: GatewayService, database: Database
) -> None:
    verb("start", "7", "--share", "0.5")
    service.sync()
    given = ask(service, 120)
    assert deciders(given) == {"champion", "candidate"}
    for answer in given:
        rating = 1 if answer.decision.router_version == "candidate" else 5
        service.answerer.feedback(answer.request_id, rating, None, None)
    while service.answerer.settle_outbox():
        continue
    service.sync()
    [trial] = verb("status")
    assert trial["stopped"]
    assert trial["why"].startswith("quality: ")
    assert deciders(ask(service, 20, start=500)) == {"champion"}


def test_a_shadow_decides_beside_and_serves_nobody_until_it_is_stopped(service: GatewayService) -> None:
    verb("start", "7")
    service.sync()
    assert deciders(ask(service, 10)) == {"champion"}
    service.sync()
    assert verb("status")[0]["decided"] == 10
    assert verb("stop", "--reason", "seen enough")["why"] == "seen enough"
    service.sync()
    ask(service, 5, start=10)
    service.sync()
    [trial] = verb("status")
    assert (trial["decided"], trial["why"]) == (10, "seen enough")
    assert CliRunner().invoke(trials.app, ["stop"]).exit_code == 1  # there is none any more


def test_a_candidate_with_a_damaged_attention_part_serves_nobody(
    service: GatewayService, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_random_bundle(tmp_path / "plain", version="candidate", seed=8)
    monkeypatch.setattr(attention_part, "from_bytes", lambda content: None)  # else it is not even packed
    part = safetensors.numpy.save({"layers.0.weight": np.zeros((4, 4), np.float32)})
    sha256 = attention_part.pack(tmp_path / "plain", part, tmp_path / "damaged")
    canary.start(database, "7", sha256, (tmp_path / "damaged").as_uri(), 0.5)
    service.sync()
    given = ask(service, 20)
    assert deciders(given) == {"champion"}
    assert not any(answer.degraded for answer in given)
    assert verb("status")[0]["why"].startswith("not usable: router bundle: its attention part: ")

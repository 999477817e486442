"""The model's process, as its parent sees it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from inference_prompts import short_prompt

from ruvllm.errors import (
    InferenceError,
    InputError,
    ModelFileError,
    OverloadedError,
    TooLargeError,
    WorkerDiedError,
)
from ruvllm.inference.llama_cpp import LlamaWorker
from ruvllm.inference.machine import repacks
from ruvllm.inference.pool import ModelPool
from ruvllm.inference.prompt import build
from ruvllm.inference.tiers import Ladder, Tier
from ruvllm.inference.types import Sampling
from ruvllm.settings import PROJECT_ROOT, Settings

ENDLESS = short_prompt("Tell a story.", static="")
LONG_ANSWER = Sampling(max_tokens=600, temperature=1.5, seed=1)


def test_a_base_model_answers_from_the_passage(few_shot_worker: LlamaWorker) -> None:
    passage = "The Suez Canal was opened in November 1869 after ten years of digging."
    prompt = build(few_shot_worker.tier, "When was the Suez Canal opened?", [passage], [])
    answer = few_shot_worker.generate(prompt, Sampling(max_tokens=16), 60)
    assert "1869" in answer.text
    assert "\n" not in answer.text
    again = few_shot_worker.generate(prompt, Sampling(max_tokens=16), 60)
    assert again.text == answer.text
    assert again.cached_tokens > 100


def test_count_tokens_counts_untrusted_text(chat_worker: LlamaWorker) -> None:
    assert chat_worker.count_tokens(["", "Hello", "<|im_end|>"]) == [0, 1, 7]


@pytest.mark.parametrize(
    ("question", "error", "words"),
    [
        ("word " * 3000, TooLargeError, "want at most 2048 together"),
        ("x" * 9_000_000, TooLargeError, "want at most"),
        ("\ud800", InputError, "lone surrogate"),
    ],
    ids=["over n_ctx", "over a frame", "surrogate"],
)
def test_what_cannot_be_asked(chat_worker: LlamaWorker, question: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        chat_worker.generate(short_prompt(question), Sampling(max_tokens=4), 30)
    assert chat_worker.generate(short_prompt("Hi"), Sampling(max_tokens=2), 30).completion_tokens <= 2


def test_nul_is_text_that_is_neither_the_end_nor_left_out(chat_worker: LlamaWorker) -> None:
    """The gateway refuses it, for Postgres stores none; a C string would have ended there."""
    cut, whole, behind = chat_worker.count_tokens(["one two", "one two\0 three four", " three four"])
    assert whole > max(cut, behind)
    assert chat_worker.generate(short_prompt("one\0two"), Sampling(max_tokens=2), 30).completion_tokens <= 2


def test_bad_sampling_does_not_reach_the_model(chat_worker: LlamaWorker) -> None:
    with pytest.raises(InputError, match="temperature: got nan"):
        chat_worker.generate(short_prompt("Hi"), Sampling(temperature=float("nan")), 30)


def test_a_request_of_another_shape_is_an_error_and_the_process_lives(chat_worker: LlamaWorker) -> None:
    for request in ({"op": "fly"}, {"op": "generate"}, {"op": "choose", "prompts": 3, "choices": None}, {}):
        with pytest.raises(InferenceError, match="the log says where"):
            chat_worker._ask(request, 30)
    assert chat_worker.count_tokens(["Hello"]) == [1]


def test_a_deadline_that_is_no_time_does_not_reach_the_model(chat_worker: LlamaWorker) -> None:
    for seconds in (float("nan"), -1.0):
        with pytest.raises(InputError, match="deadline: got"):
            chat_worker.generate(short_prompt("Hi"), Sampling(max_tokens=1), seconds)


def test_a_streamed_answer_is_the_answer(few_shot_worker: LlamaWorker) -> None:
    passage = "The Suez Canal was opened in November 1869 after ten years of digging."
    prompt = build(few_shot_worker.tier, "When was the Suez Canal opened?", [passage], [])
    whole = few_shot_worker.generate(prompt, Sampling(max_tokens=16), 60)
    with few_shot_worker.stream(prompt, Sampling(max_tokens=16), 60) as stream:
        pieces = list(stream)
    assert "".join(pieces) == stream.generation.text == whole.text
    assert stream.generation.completion_tokens == whole.completion_tokens


def test_closing_a_stream_stops_a_prefill_under_way(chat_worker: LlamaWorker) -> None:
    """By CPU time of the process: what is stopped at once costs a small part of the whole prefill."""
    prompt = short_prompt("word " * 400, static="")
    process = psutil.Process(chat_worker.pid)
    before = process.cpu_times().user
    stream = chat_worker.stream(prompt, Sampling(max_tokens=1), 60)
    _until(lambda: process.cpu_times().user - before > 0.1)
    stream.close()
    stopped = process.cpu_times().user - before
    assert chat_worker.generate(prompt, Sampling(max_tokens=1), 120).completion_tokens == 1
    assert stopped < 0.5 * (process.cpu_times().user - before - stopped)


def test_probabilities_of_given_words_come_through_the_process(chat_worker: LlamaWorker) -> None:
    fire, ice = short_prompt("Fire is hot. Ice is"), short_prompt("Ice is cold. Fire is")
    for_fire, for_ice = chat_worker.choose([fire, ice], [" cold", " hot"], 60)
    assert 0 < sum(for_fire.probabilities) <= 1
    assert for_fire.probabilities != for_ice.probabilities
    with pytest.raises(InputError, match="want one token"):
        chat_worker.choose([fire], ["certainly not one token"], 60)


def test_over_the_deadline_is_an_error_in_time(chat_worker: LlamaWorker) -> None:
    began = time.monotonic()
    with pytest.raises(InferenceError, match="deadline passed"):
        chat_worker.generate(ENDLESS, LONG_ANSWER, 0.4)
    assert time.monotonic() - began < 2.0


def test_a_second_request_waits_its_turn_or_is_refused(chat_worker: LlamaWorker) -> None:
    with ThreadPoolExecutor(1) as executor:
        first = executor.submit(_fails_by_deadline, chat_worker, 1.0)
        _until(lambda: chat_worker.busy)
        with pytest.raises(OverloadedError, match=r"not free within 0\.1 s"):
            chat_worker.generate(short_prompt("Hi"), Sampling(max_tokens=1), 0.1)
        assert chat_worker.generate(short_prompt("Hi"), Sampling(max_tokens=1), 30).completion_tokens == 1
        assert first.result()


def _fails_by_deadline(worker: LlamaWorker, seconds: float) -> bool:
    with pytest.raises(InferenceError):
        worker.generate(ENDLESS, LONG_ANSWER, seconds)
    return True


def _until(condition: object, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "did not happen in time"
        threading.Event().wait(0.005)


def test_a_killed_process_is_noticed_at_once_and_replaced(
    tiers: dict[str, Tier], paths: dict[str, Path], model_settings: Settings
) -> None:
    workers: list[LlamaWorker] = []

    def start(tier: Tier) -> LlamaWorker:
        workers.append(LlamaWorker(tier, paths[tier.style], model_settings, threads=1))
        return workers[-1]

    with ModelPool(model_settings, Ladder("packaged", (tiers["chat"],), ""), start=start) as pool:
        model = pool.model(0)
        model.start()
        with ThreadPoolExecutor(1) as executor:
            answer = executor.submit(
                model.generate, short_prompt("Say a word."), replace(LONG_ANSWER, max_tokens=40), 60
            )
            _until(lambda: workers[0].busy)
            os.kill(workers[0].pid, signal.SIGKILL)
            assert answer.result(30).completion_tokens > 0
        assert len(workers) == 2
        with pytest.raises(WorkerDiedError, match=r"ended \(SIGKILL, .*\); the log is"):
            workers[0].count_tokens(["x"])
    assert not workers[1].alive


def test_the_child_ends_when_its_parent_is_killed_in_the_middle_of_an_answer(
    paths: dict[str, Path], model_settings: Settings
) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(paths["chat"]), str(model_settings.state_dir)],
        stdout=subprocess.PIPE,
        cwd=PROJECT_ROOT,
    )
    assert parent.stdout is not None
    with parent.stdout:
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        parent.wait()
        child.wait(5)


_PARENT = """
import sys, threading
from pathlib import Path
from ruvllm.inference.llama_cpp import LlamaWorker
from ruvllm.inference.tiers import load_catalogue
from ruvllm.inference.types import Prompt, Sampling, Segment
from ruvllm.settings import load_settings

tier = load_catalogue()["packaged"][0]
worker = LlamaWorker(tier, Path(sys.argv[1]), load_settings({}, state_dir=Path(sys.argv[2])), threads=1)
prompt = Prompt((), (), (), (Segment("Tell a story.", False),))
sampling = Sampling(max_tokens=900, temperature=1.5)
threading.Thread(target=worker.generate, args=(prompt, sampling, 600.0), daemon=True).start()
print(worker.pid, flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("content", [b"", b"GG", b"not a model", b"GGUF" + b"\xff" * 64], ids=str)
def test_a_file_that_is_no_model_is_an_error_and_leaves_no_process(
    tiers: dict[str, Tier], model_settings: Settings, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    before = {p.pid for p in psutil.Process().children()}
    with pytest.raises(ModelFileError, match=r"model\.gguf"):
        LlamaWorker(tiers["chat"], path, model_settings, threads=1)
    assert {p.pid for p in psutil.Process().children()} <= before


def test_the_child_sees_no_secret(
    tiers: dict[str, Tier], paths: dict[str, Path], model_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://someone:secret@host/db")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    passive = replace(model_settings, wait_policy="passive")
    with LlamaWorker(tiers["chat"], paths["chat"], passive, threads=1) as worker:
        environment = psutil.Process(worker.pid).environ()
    assert "DATABASE_URL" not in environment
    assert environment["OMP_WAIT_POLICY"] == "passive"


def test_the_resident_set_holds_no_scores_of_every_token(few_shot_worker: LlamaWorker) -> None:
    """n_batch x n_vocab floats would be 512 MiB for Gemma alone; what AMX rearranges is 213."""
    most = 560 + (220 if repacks() == "all" else 0)
    assert psutil.Process(few_shot_worker.pid).memory_info().rss < most * 2**20


def test_a_memory_limit_that_a_model_outgrows_ends_it_with_an_error_and_the_next_one_answers(
    tiers: dict[str, Tier], paths: dict[str, Path], model_settings: Settings
) -> None:
    """llama.cpp's own buffers, not a script's: the limit is lowered to what the process holds once it is loaded."""
    with LlamaWorker(tiers["chat"], paths["chat"], model_settings, threads=1) as worker:
        held = next(line for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines() if "VmData" in line)
        limit = int(held.split()[1]) * 1024
        resource.prlimit(worker.pid, resource.RLIMIT_DATA, (limit, limit))
        with pytest.raises(WorkerDiedError, match="limit is"):
            worker.generate(short_prompt("word " * 1200), replace(LONG_ANSWER, max_tokens=64), 120)
        assert not worker.alive
    with LlamaWorker(tiers["chat"], paths["chat"], model_settings, threads=1) as worker:
        assert worker.generate(short_prompt("Hi"), Sampling(max_tokens=1), 60).completion_tokens == 1

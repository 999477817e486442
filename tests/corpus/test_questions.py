"""Questions: their gold is in the passage, no country crosses, sessions depend on what came before, order is fixed."""

import hashlib
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from ruvllm.corpus import factbook, pydocs
from ruvllm.corpus.answers import MAX_ANSWER
from ruvllm.corpus.kinds import BY_NAME, KINDS
from ruvllm.corpus.questions import LOTS, REPEAT_SHARE, day, oracle_sample, questions, sessions
from ruvllm.corpus.records import Question, is_traffic
from ruvllm.corpus.standalone import given_away
from ruvllm.errors import InputError
from ruvllm.evaluation.qa import score_answer

ROOT = Path(__file__).resolve().parents[2]
ALL = questions()
TEXTS = {passage.key: passage.text for passage in (*factbook.passages(), *pydocs.passages())}
NAMES = {country.code: country.name.removeprefix("The ") for country in factbook.countries()}
_PRINT = (
    "import hashlib; from ruvllm.corpus.questions import day, questions;"
    "print(hashlib.sha256(repr([questions(), day(3, 24)]).encode()).hexdigest())"
)


def test_there_are_thousands_of_many_kinds_and_all_are_distinct() -> None:
    assert len(ALL) > 5000
    assert len({question.key for question in ALL}) == len(ALL)
    assert len({question.kind for question in ALL}) >= 60
    assert {question.domain for question in ALL} == {
        "geography", "people", "government", "economy", "energy", "communications", "transport", "python"
    }  # fmt: skip


def test_each_kind_is_asked_in_two_wordings_or_more() -> None:
    assert len(KINDS) >= 12
    assert all(len(set(kind.wordings)) >= 2 for kind in KINDS)
    wordings = defaultdict(set)
    for question in ALL:
        wordings[question.kind].add(question.key[-1] if question.session_id is None else "")
    assert all(len(seen - {""}) >= 2 for seen in wordings.values())


def test_the_gold_passages_tell_the_answer() -> None:
    for question in ALL:
        assert all(key in TEXTS for key in question.gold_passages), question
        if question.kind in BY_NAME and question.kind != "neighbour_count":
            items = question.gold[0].split("; ")
            assert all(item in TEXTS[question.gold_passage] for item in items), question
        elif question.domain == "python":
            assert question.gold[0] in TEXTS[question.gold_passage], question


def test_an_answer_is_short_and_not_given_away() -> None:
    for question in ALL:
        assert 0 < len(question.gold[0]) <= MAX_ANSWER, question
        assert question.gold[0] not in ("NA", "none"), question
        if question.session_id is None and question.gold[0] not in ("yes", "no"):
            assert not given_away(question.gold, question.text), question


def test_every_gold_scores_one() -> None:
    assert all(score_answer(gold, question.gold) == 1.0 for question in ALL[::10] for gold in question.gold)


def test_no_country_or_module_is_in_both_splits() -> None:
    of_group = defaultdict(set)
    for question in ALL:
        for group in question.groups:
            of_group[group].add(question.split)
    assert all(len(splits) == 1 for splits in of_group.values())
    countries = [group for group in of_group if "/" not in group]
    train = sum(of_group[group] == {"train"} for group in countries)
    assert 0.6 < train / len(countries) < 0.8


def test_yes_and_no_are_balanced() -> None:
    said = Counter(question.gold[0] for question in ALL if question.gold[0] in ("yes", "no"))
    assert 0.8 < said["yes"] / said["no"] < 1.25


def test_two_countries_are_compared_by_what_their_passages_say() -> None:
    pairs = [question for question in ALL if question.kind == "larger_population"]
    assert len(pairs) > 50
    for question in pairs:
        first, second = (TEXTS[key].split("Population: ")[1].split(" (")[0] for key in question.gold_passages)
        assert question.gold[0] == first, question
        assert _value(first) > _value(second)


def _value(text: str) -> float:
    number, _, scale = text.replace(",", "").rstrip(".").partition(" ")
    return float(number) * {"million": 1e6, "billion": 1e9}.get(scale, 1)


def test_a_sum_is_that_of_the_passage() -> None:
    ghana = next(q for q in questions() if q.kind == "coast_plus_border" and q.gold_passage in TEXTS)
    text = TEXTS[ghana.gold_passage]
    coast = _value(text.split("Coastline: ")[1].split(" km")[0])
    border = _value(text.split("total length: ")[1].split(" km")[0])
    assert score_answer(f"{coast + border:.1f}", ghana.gold) == 1.0


def test_a_follow_up_needs_its_history() -> None:
    asked = sessions()
    assert len(asked) > 400
    assert {len(turns) for turns in asked} == {2, 3, 4, 5}
    for turns in asked:
        name = NAMES[turns[0].group]
        assert name in turns[0].text
        assert turns[0].history == ()
        for number, turn in enumerate(turns[1:], start=1):
            assert name not in turn.text
            assert turn.history == tuple((earlier.text, earlier.gold[0]) for earlier in turns[:number])
            assert turn.turn == number + 1
            assert turn.session_id == turns[0].session_id
            needed = BY_NAME[turn.kind].after
            assert not needed or turns[number - 1].kind == needed


def test_the_same_follow_up_has_another_answer_after_another_turn() -> None:
    meant = {turn.kind for turns in sessions() for turn in turns if turn.text == "At what rate does it grow?"}
    assert meant == {"growth", "gdp_growth"}


@pytest.mark.parametrize("length", [120, 600, 3000])
def test_every_beginning_is_balanced(length: int) -> None:
    head = ALL[:length]
    splits = Counter(question.split for question in head)
    assert abs(splits["train"] - 2 * splits["test"]) <= 12
    assert len({question.kind for question in head}) >= 60
    kinds = Counter(question.kind for question in head if question.session_id is None)
    assert max(kinds.values()) <= 2 * length / len(kinds)
    _assert_sessions_whole(ALL)


def _assert_sessions_whole(asked: list[Question]) -> None:
    for before, question in zip([None, *asked], asked, strict=False):
        if question.turn > 1:
            assert before is not None
            assert (before.session_id, before.turn) == (question.session_id, question.turn - 1)


def test_a_day_asks_only_about_its_own_train_countries() -> None:
    for night in range(1, LOTS):
        asked = day(night, 24)
        assert len(asked) == 24
        assert all(is_traffic(group) for question in asked for group in question.groups)
        assert all(question.split == "train" for question in asked)
        _assert_sessions_whole(asked)


def test_days_are_new_but_for_paraphrases_of_the_days_before() -> None:
    facts: dict[str, str] = {}
    for night in range(1, LOTS):
        asked = [question for question in day(night, 24) if question.session_id is None]
        again = [question for question in asked if question.fact in facts]
        assert len(again) >= (night > 1) * round(24 * REPEAT_SHARE)
        assert len(again) <= 6
        assert all(question.text != facts[question.fact] for question in again)
        facts.update({question.fact: question.text for question in asked})


def test_the_oracle_samples_what_traffic_never_asks() -> None:
    first, second = oracle_sample(1, 120), oracle_sample(2, 37)
    assert (len(first), len(second)) == (120, 37)
    assert Counter(question.split for question in first) == {"train": 80, "test": 40}
    assert not {question.key for question in first} & {question.key for question in second}
    sampled = {group for question in first for group in question.groups}
    traffic = {group for night in range(LOTS) for question in day(night, 24) for group in question.groups}
    assert not sampled & traffic
    assert len({question.kind for question in first}) >= 50
    _assert_sessions_whole(first)


def test_a_negative_night_or_number_is_refused() -> None:
    with pytest.raises(InputError, match="night: got -1"):
        day(-1, 5)
    with pytest.raises(InputError, match="n: got -5"):
        oracle_sample(1, -5)
    assert day(1, 0) == []


def test_another_process_asks_the_same_and_another_seed_does_not() -> None:
    here = hashlib.sha256(repr([ALL, day(3, 24)]).encode()).hexdigest()
    environment = {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(ROOT)}
    there = subprocess.run(  # our own interpreter and code
        [sys.executable, "-c", _PRINT], capture_output=True, text=True, check=True, env=environment, cwd=ROOT
    )
    assert there.stdout.strip() == here
    assert [question.text for question in questions(1)[:200]] != [question.text for question in ALL[:200]]

"""The score of an answer: against cases worked out by hand, an independent formula, and properties on any text."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruvllm.evaluation.qa import exact_match, f1, normalise, score_answer

TEXT = st.text(max_size=80)
GOLDS = st.lists(TEXT, min_size=1, max_size=4)
SLOPPY = st.text(alphabet="aAth e;,.-0123456789%$\n'yesno", max_size=60)  # what the tokeniser cuts at


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Capital of Côte d’Ivoire!", "capital of cote divoire"),
        ("1,234.50 km", "1234.5 km"),
        ("$1.2 million", "1200000"),
        ("0.50%", "0.5 percent"),
        ("50 per cent", "50 percent"),
        ("-40 m, minus 40 m", "-40 m -40 m"),
        ("Washington, D.C.", "washington dc"),
        ("10-12 and 2023-24", "10 12 and 2023 24"),
        ("885m", "885 m"),
        ("the 6th of March", "6 of march"),
        ("9G and .gh", "9g and .gh"),
        ("Togo,1,098 km", "togo 1098 km"),
    ],
)
def test_normalise_makes_one_spelling(text: str, normal: str) -> None:
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("answer", "golds", "score"),
    [
        ("The capital is Accra.", ("Accra",), 1.0),
        ("Kumasi", ("Accra",), 0.0),
        ("It covers 238,533 square kilometres.", ("238,533 sq km", "238,533"), 1.0),
        ("238533 km2", ("238,533 sq km", "238,533"), 1.0),
        ("2,385,330 sq km", ("238,533 sq km", "238,533"), 0.0),
        ("1 million people", ("1,000,000",), 1.0),
        ("70 percent", ("70%", "70"), 1.0),
        ("About 7 percent", ("70%", "70"), 0.0),
        ("885m", ("885 m",), 1.0),
        ("March 6, 1957", ("6 March 1957", "March 6, 1957"), 1.0),
        ("Bogota", ("Bogotá",), 1.0),
        ("Yes, it is.", ("yes",), 1.0),
        ("yes and no", ("yes",), 0.0),
        ("No.", ("yes",), 0.0),
        ("It is .no", ("no",), 0.0),
        ("constitutional monarchy", ("parliamentary constitutional monarchy",), 0.4),  # half of F1 = 4/5
        ("", ("Accra",), 0.0),
        ("Accra", (), 0.0),
    ],
)
def test_scores_worked_out_by_hand(answer: str, golds: tuple[str, ...], score: float) -> None:
    assert score_answer(answer, golds) == pytest.approx(score)


BORDERS = ("Burkina Faso; Cote d'Ivoire; Togo",)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Ghana borders Burkina Faso, Côte d'Ivoire and Togo.", 1.0),
        ("- Togo\n- Burkina Faso\n- Cote d'Ivoire", 1.0),
        ("Togo", 0.5),  # precision 1, recall 1/3
        ("Togo, Benin", 0.4),  # precision 1/2, recall 1/3
        ("Benin", 0.0),
    ],
)
def test_a_list_scores_the_f1_of_its_items(answer: str, score: float) -> None:
    assert score_answer(answer, BORDERS) == pytest.approx(score)


def test_an_item_inside_another_name_is_not_found() -> None:
    golds = ("Guinea; Guinea-Bissau",)
    assert score_answer("Guinea-Bissau", golds) == pytest.approx(2 / 3)
    assert score_answer("Bosnia and Herzegovina, Serbia", ("Serbia; Bosnia and Herzegovina",)) == 1.0


def test_a_dump_of_text_is_worth_its_brevity() -> None:
    words = [f"word{number}" for number in range(99)]
    assert score_answer(" ".join([*words, "Accra"]), ("Accra",)) == pytest.approx((12 + 3 * 1) / 100)
    assert score_answer(" ".join([*words[:14], "Accra"]), ("Accra",)) == 1.0


@given(
    st.lists(st.sampled_from(["red", "green", "blue", "gold"]), max_size=8),
    st.lists(st.sampled_from(["red", "blue"]), min_size=1, max_size=5),
)
def test_f1_is_twice_the_overlap_over_both_lengths(said: list[str], wanted: list[str]) -> None:
    overlap = sum(min(said.count(word), wanted.count(word)) for word in set(said))
    precision = overlap / len(said) if said else 0.0
    recall = overlap / len(wanted)
    expected = 2 * precision * recall / (precision + recall) if overlap else 0.0
    assert f1(" ".join(said), [" ".join(wanted)]) == pytest.approx(expected)
    assert exact_match(" ".join(said), [" ".join(wanted)]) == float(Counter(said) == Counter(wanted) and said == wanted)


@given(TEXT | SLOPPY, st.lists(TEXT | SLOPPY, max_size=4))
def test_every_metric_is_a_share_and_never_raises(answer: str, golds: list[str]) -> None:
    for metric in (score_answer, f1, exact_match):
        assert 0.0 <= metric(answer, golds) <= 1.0


@given(st.lists(TEXT | SLOPPY, min_size=1, max_size=4), st.data())
def test_every_gold_scores_one_for_itself(golds: list[str], data: st.DataObject) -> None:
    gold = data.draw(st.sampled_from(golds))
    assert score_answer(gold, golds) == 1.0
    assert exact_match(gold, golds) == f1(gold, golds) == 1.0


@given(TEXT | SLOPPY, GOLDS, st.randoms(use_true_random=False))
def test_the_order_of_golds_does_not_matter(answer: str, golds: list[str], dice: object) -> None:
    shuffled = list(golds)
    dice.shuffle(shuffled)  # type: ignore[attr-defined]
    assert score_answer(answer, golds) == score_answer(answer, shuffled)


@given(st.integers(0, 10**15), st.sampled_from(["", " km", "%", " people"]))
def test_a_number_is_its_value_however_it_is_written(value: int, unit: str) -> None:
    assert score_answer(f"It is {value}{unit}.", [f"{value:,}{unit}"]) == 1.0
    assert score_answer(f"It is {value:,}.00{unit}.", [f"{value}{unit}"]) == 1.0
    assert score_answer(f"It is {value + 1:,}{unit}.", [f"{value}{unit}"]) == 0.0


def test_a_number_of_any_length_is_read() -> None:
    digits = "9" * 6000  # int() refuses more than 4,300 digits
    assert score_answer(digits, [digits]) == score_answer(f"{digits} million", [digits + "000000"]) == 1.0

"""A field's text read into the exact answer and its aliases."""

from collections.abc import Callable

import pytest

from ruvllm.corpus import answers


@pytest.mark.parametrize(
    ("read", "text", "answer"),
    [
        (answers.amount, "238,533 sq km", "238,533 sq km"),
        (answers.amount, "35,336,133 (2025)", "35,336,133"),
        (answers.amount, "59.2% of total population (2023)", "59.2%"),
        (answers.amount, "27.09 births/1,000 population (2025)", "27.09 births/1,000 population"),
        (answers.amount, "-0.15% (2025)", "-0.15%"),
        (answers.amount, "no permanent inhabitants", None),
        (answers.boundary, "0 km", None),
        (answers.count, "11 (2025)", "11"),
        (answers.place_name, "Kilimanjaro (highest point in Africa) 5,895 m", "Kilimanjaro"),
        (answers.place_name, "unnamed elevation 805 m", None),
        (answers.height, "Chott Melrhir -40 m", "-40 m"),
        (answers.date, "6 March 1957 (from the UK)", "6 March 1957"),
        (answers.date, "24 September 1973 (declared); 10 September 1974 (from Portugal)", None),
        (answers.ruler, "6 March 1957 (from the UK)", "the UK"),
        (answers.holiday_name, "Independence Day, 6 March (1957)", "Independence Day"),
        (answers.holiday_date, "Independence Day, 6 March (1957)", "6 March"),
        (answers.official_language, "Spanish (official) 69.9%, Maya languages 29.7%", "Spanish"),
        (answers.official_language, "Kirundi (official), French (official)", None),
        (answers.leading, "Akan 45.7%, Ewe 12.8% (2021)", "Akan"),
        (answers.leading, "Uganda 10%, USA 10%", None),
        (answers.capital, "Hanoi (Ha Noi)", "Hanoi"),
        (answers.capital, "Porto-Novo (constitutional capital); Cotonou (seat of government)", None),
        (answers.person, "President John Dramani MAHAMA (since 7 January 2025)", "John Dramani MAHAMA"),
        (answers.currency, "cedis (GHC)", "cedis"),
        (answers.items, "red, yellow, green (2023)", "red; yellow; green"),
        (answers.neighbours, "Burkina Faso 602 km; Togo 1098 km", "Burkina Faso; Togo"),
        (answers.neighbours, "Togo 1098 km; Benin …", None),
        (answers.neighbour_count, "Burkina Faso 602 km; Togo 1098 km", "2"),
        (answers.title, '"La Concorde" (The Concorde)', "La Concorde"),
        (answers.age, "18 years of age; universal", "18 years of age"),
    ],
)
def test_reading(read: Callable[[str], tuple[str, ...]], text: str, answer: str | None) -> None:
    assert (read(text) or (None,))[0] == answer


def test_an_answer_has_the_aliases_people_use() -> None:
    assert set(answers.amount("238,533 sq km")) >= {"238,533", "238,533 square kilometers"}
    assert "March 6, 1957" in answers.date("6 March 1957 (from the UK)")
    assert "United Kingdom" in answers.ruler("6 March 1957 (from the UK)")
    assert "landlocked" in answers.coast("0 km (landlocked)")


def test_a_number_is_read_with_its_scale() -> None:
    assert answers.number("$1.07 billion (2023)") == 1_070_000_000
    assert answers.number("none") is None

"""The Factbook as passages: clean, short, self-contained and always the same."""

import re

import pytest

from ruvllm.corpus import corpus_nodes, factbook, pydocs
from ruvllm.corpus.clean import clip, plain
from ruvllm.errors import SettingsError

PASSAGES = factbook.passages()


def test_every_country_is_told_in_a_few_short_passages() -> None:
    assert len(factbook.countries()) == 256
    assert 2000 <= len(PASSAGES) <= 2800
    assert max(len(passage.text) for passage in PASSAGES) <= factbook.PASSAGE_LIMIT
    assert len({passage.key for passage in PASSAGES}) == len({passage.text for passage in PASSAGES}) == len(PASSAGES)


def test_a_passage_names_its_country_and_section() -> None:
    ghana = [passage for passage in PASSAGES if passage.group == "gh"]
    assert ghana[0].key == "factbook/gh/geography-1"
    assert ghana[0].text.startswith("Ghana — Geography: ")
    assert "Total area: 238,533 sq km." in ghana[0].text
    assert {passage.domain for passage in ghana} == {
        "geography", "people", "government", "economy", "energy", "communications", "transport"
    }  # fmt: skip
    for country in factbook.countries():
        assert all(passage.text.startswith(f"{country.name} — ") for passage in country.passages)


def test_no_markup_or_entity_is_left() -> None:
    left = [passage.text for passage in PASSAGES if re.search(r"</?[a-z]|&\w+;|\bnote:|\s{2}|\xa0", passage.text)]
    assert left == []


def test_names_are_those_one_would_ask_for() -> None:
    names = {country.code: country.in_text for country in factbook.countries()}
    assert names["cg"] == "the Democratic Republic of the Congo"
    assert names["iv"] == "Côte d'Ivoire"
    assert names["nl"] == "the Netherlands"
    assert "none" not in names.values()


@pytest.mark.parametrize(
    ("fragment", "text"),
    [
        ("<p>Bras&iacute;lia</p>", "Brasília"),
        ("one<br><br>two", "one; two"),
        ("Santiago; note - Valparaiso is the seat", "Santiago"),
        ("5%<strong>note:</strong> of all", "5%"),
        ("70% (2023 est.)", "70% (2023)"),
        ("Ambassador&nbsp;(vacant)", "Ambassador (vacant)"),
        ("NA", ""),
    ],
)
def test_a_fragment_becomes_plain_text(fragment: str, text: str) -> None:
    assert plain(fragment) == text


def test_a_long_list_is_cut_between_its_items() -> None:
    assert clip("alpha, beta, gamma, delta", 20) == "alpha, beta …"
    assert clip("alpha, beta", 20) == "alpha, beta"


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    factbook.countries.cache_clear()
    monkeypatch.setattr(factbook.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"ruvllm\[demo\]"):
        factbook.passages()


def test_the_python_documentation_is_short_and_plain() -> None:
    passages = pydocs.passages()
    assert 300 <= len(passages) <= 600
    assert max(len(passage.text) for passage in passages) <= pydocs.PASSAGE_LIMIT
    assert len({passage.key for passage in passages}) == len(passages)
    assert not [passage.text for passage in passages if re.search(r" at 0x", passage.text)]
    assert "sorted(iterable" in next(passage.text for passage in passages if passage.key == "python/builtins/sorted")


def test_both_sources_become_nodes_with_distinct_texts() -> None:
    nodes = corpus_nodes()
    assert len(nodes) == len(PASSAGES) + len(pydocs.passages()) == len({node.text for node in nodes})
    assert {node.kind for node in nodes} == {"Document"}
    assert nodes[0].metadata["key"] == PASSAGES[0].key

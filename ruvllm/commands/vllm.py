"""`ruvllm vllm …`: vLLM servers of this machine. No work of its own."""

from __future__ import annotations

import shlex
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from ruvllm.commands.console import console, table
from ruvllm.commands.shared import showing
from ruvllm.commands.verbs import Json, plainly, say, settings_here

if TYPE_CHECKING:
    from ruvllm.inference.vllm_command import Plan
    from ruvllm.inference.vllm_server import Running
    from ruvllm.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    help="Tiers behind vLLM servers of this machine: start, show, stop. A server needs an environment of its own "
    "(infra/vllm.sh makes it) and a Hugging Face checkpoint; RUVLLM_VLLM then sends a tier's requests to it.",
)
What = Annotated[str, typer.Argument(help="A tier, for example 350m, or the path of a checkpoint's folder.")]
Name = Annotated[str, typer.Option(help="Serve a folder under this name; it must be the tier's to answer for it.")]
Port = Annotated[int, typer.Option(help="Of the first replica; 0 takes a free one.", min=0, max=65535)]
Replicas = Annotated[int, typer.Option(help="How many servers of it.", min=1, max=8)]
Bits = Annotated[str, typer.Option("--quantisation", help="auto | none | 8-bit | 4-bit; the last two on a GPU only.")]
Parts = Annotated[int, typer.Option("--tensor-parallel", help="Cards that share the model.", min=1, max=64)]
Caching = Annotated[bool, typer.Option(help="Keep what prompts have in common.")]
Room = Annotated[int, typer.Option("--kv-gib", help="GiB for keys and values, on a CPU.", min=1, max=1024)]
Dtype = Annotated[str, typer.Option(help="auto | bfloat16 | float16 | float32.")]


@app.command()
@plainly
def up(
    what: What,
    name: Name = "",
    port: Port = 0,
    replicas: Replicas = 1,
    quantisation: Bits = "auto",
    tensor_parallel: Parts = 1,
    prefix_caching: Caching = True,
    kv_gib: Room = 1,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Start servers of a tier and wait until they answer; one that runs is left as it is.

    Prints the RUVLLM_VLLM to set. The first start takes minutes.
    """
    from ruvllm.inference import vllm_server

    settings = settings_here()
    plan, why = _plan(settings, what, name, quantisation, tensor_parallel, prefix_caching, kv_gib, dtype)
    running = []
    with showing(as_json, f"Starting {plan.name} ({why})") as progress:
        for place in range(replicas):
            wanted = port + place if port else 0
            one = replace(plan, port=vllm_server.port_of(settings, plan.name, place, wanted))
            running.append(vllm_server.up(one, settings, place, progress))
    _show(settings, running, as_json)


@app.command()
@plainly
def down(
    name: Annotated[str, typer.Argument(help="Servers of this name; by default all.")] = "", as_json: Json = False
) -> None:
    """Stop servers, with every process that they started."""
    from ruvllm.inference import vllm_server

    with showing(as_json, "Stopping") as progress:
        stopped = vllm_server.down(settings_here(), name, progress)
    say(as_json, stopped, lambda: console.print("\n".join(f"stopped {each}" for each in stopped) or "none ran"))


@app.command()
@plainly
def status(as_json: Json = False) -> None:
    """What was started here, whether it lives and answers, and where its log is."""
    from ruvllm.inference import vllm_server

    settings = settings_here()
    _show(settings, vllm_server.status(settings), as_json)


@app.command("command")
@plainly
def show_command(
    what: What,
    name: Name = "",
    port: Port = 8101,
    quantisation: Bits = "auto",
    tensor_parallel: Parts = 1,
    prefix_caching: Caching = True,
    kv_gib: Room = 1,
    dtype: Dtype = "auto",
) -> None:
    """Print the command that `up` would run, to be run by your own supervisor; the key comes from its file."""
    from ruvllm.inference import vllm_server
    from ruvllm.inference.vllm_command import command, environment
    from ruvllm.inference.vllm_settings import own_key_file

    settings = settings_here()
    plan, _ = _plan(settings, what, name, quantisation, tensor_parallel, prefix_caching, kv_gib, dtype)
    plan = replace(plan, port=port)
    vllm_server.ensure_key(settings)
    made = environment(plan, "", settings.state_dir / "vllm", {})
    words = [f"{k}={shlex.quote(v)}" for k, v in made.items() if k != "VLLM_API_KEY"]
    key = f'VLLM_API_KEY="$(cat {shlex.quote(str(own_key_file(settings)))})"'
    print(" ".join(["env", key, *words, shlex.join(command(plan, vllm_server.interpreter(settings)))]))


def _plan(
    settings: Settings, what: str, name: str, bits: str, parts: int, caching: bool, kv_gib: int, dtype: str
) -> tuple[Plan, str]:
    from ruvllm.inference import vllm_server
    from ruvllm.inference.vllm_command import Plan

    usual, folder = vllm_server.checkpoint(what, settings)
    served, gpu = vllm_server.checked_name(name or usual), vllm_server.has_gpu()
    chosen, why = vllm_server.quantisation(bits, served, settings.n_ctx, gpu)
    plan = Plan(
        name=served,
        folder=folder,
        port=0,
        n_ctx=settings.n_ctx,
        gpu=gpu,
        quantisation=chosen,
        tensor_parallel=parts,
        prefix_caching=caching,
        kv_gib=kv_gib,
        threads=settings.threads,
        dtype=dtype,
    )
    return plan, why


def _show(settings: Settings, running: list[Running], as_json: bool) -> None:
    from ruvllm.inference.vllm_server import setting

    columns = ["tier", "url", "pid", "answers", "log"]
    rows = [[r.name, r.url, r.pid, "yes" if r.answers else "no", str(r.log)] for r in running]
    line = f"export RUVLLM_VLLM={shlex.quote(setting(running))}"
    say(
        as_json,
        {"servers": [asdict(each) for each in running], "setting": setting(running)},
        lambda: console.print(table("vLLM servers", columns, rows), f"\n{line}" if setting(running) else "", sep=""),
    )

"""`ruvllm memory explain` and `ruvllm memory link`: why nodes are retrieved, and edges where there are none.

No work of its own; heavy parts load inside the verbs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ruvllm.commands.console import console, table
from ruvllm.commands.shared import showing
from ruvllm.commands.verbs import Json, plainly, say, settings_here

app = typer.Typer(no_args_is_help=True)


@app.command()
@plainly
def explain(
    question: Annotated[str, typer.Argument(help="The question.")],
    k: Annotated[int, typer.Option("--k", "-k", help="How many nodes.", min=1, max=256)] = 12,
    image: Annotated[Path | None, typer.Option(help="Draw the graph there: a .png, .svg or .pdf file.")] = None,
    reader: Annotated[str, typer.Option(help="Whose untrusted nodes are found, too.")] = "",
    as_json: Json = False,
) -> None:
    """What memory retrieves for a question: the graph, with places before and after attention.

    Attention is the part of the promoted router's bundle; without one, the order before it is shown.

    [dim]ruvllm memory explain "highest mountain of Chad" --image graph.svg[/]
    """
    from ruvllm.attention.explain import draw, explained
    from ruvllm.attention.part import carried
    from ruvllm.attention.source import MemorySource
    from ruvllm.attention.stage import Retriever
    from ruvllm.memory.naming import title_of
    from ruvllm.text import clean_text
    from ruvllm.workplace import open_workplace

    settings, question = settings_here(), clean_text(question, "question")
    with open_workplace(settings) as place:
        part = carried(place.champion())
        retriever = Retriever(MemorySource(place.memory, reader), place.embedder.id, part)
        ranked = retriever.rank(question, place.embedder.embed_one(question), reader)
        nodes = place.memory.get(ranked.ids[: max(k, 24)].tolist())
    titles = {node.id: title_of(node.text, str(node.metadata.get("context", ""))) or node.text for node in nodes}
    rows = explained(ranked, titles, k)
    if image is not None:
        draw(ranked, titles, image, question)
    about = {
        "attention": retriever.model.version if retriever.model else None,
        "entropy": ranked.entropy if ranked.attended else None,
        "ms": ranked.stage_ms,
        "nodes": [row.as_dict() for row in rows],
    }
    note = f"attention {retriever.model.version}" if retriever.model else "no attention model: the order before it"
    columns = ["place", "before", "score", "share", "hop", "cosine", "words", "by way of", "node"]
    shown = [[r.after, r.before, r.score, r.share, r.hop, r.cosine, r.words, r.via, " ".join(r.title.split())[:80]]
             for r in rows]  # fmt: skip
    say(as_json, about, lambda: console.print(table(f"Retrieved for {question!r}, {note}", columns, shown)))


@app.command()
@plainly
def link(as_json: Json = False) -> None:
    """Draw edges among the nodes of memory: shared names, titles, links, order, nearness. Again: only what is new.

    [dim]ruvllm memory link[/]
    """
    from ruvllm.memory.linker import link_nodes, shared_ids
    from ruvllm.workplace import open_workplace

    with open_workplace(settings_here()) as place, showing(as_json, "Linking") as progress:
        report = link_nodes(place.memory, shared_ids(place.memory), progress=progress)
    about = {"nodes": report.nodes, "found": report.found, "made": report.made, "written": report.written}
    say(as_json, about, lambda: console.print(str(report)))

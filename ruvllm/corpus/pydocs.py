"""Python's own documentation as a second corpus: language topics and standard-library docstrings, always there.

Knows nothing of memory or models. Texts differ between Python versions; for one version they are always the same.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType

from ruvllm.corpus.records import Passage, Question, share, split_of

PASSAGE_LIMIT = 600  # characters
SOURCE = "python-documentation"

TOPICS = (
    "assert", "async", "augassign", "break", "class", "comparisons", "context-managers", "continue", "del", "else",
    "exceptions", "for", "global", "identifiers", "if", "import", "in", "lambda", "naming", "nonlocal", "numbers",
    "operator-summary", "pass", "power", "raise", "return", "slicings", "truth", "try", "typesmapping", "while",
    "with", "yield",
)  # fmt: skip
MODULES = (
    "math", "json", "re", "itertools", "collections", "functools", "random", "statistics", "shutil", "glob", "csv",
    "textwrap", "heapq", "bisect", "copy", "tempfile", "fnmatch", "difflib",
)  # fmt: skip
TYPES = (str, list, dict, set)  # bytes repeats str, method for method
_TOPIC_PASSAGES = 4  # of one topic: its beginning, where the matter is defined
_PLAIN_DEFAULT = (bool, int, float, str)


@lru_cache(maxsize=1)
def _all_passages() -> tuple[Passage, ...]:
    return tuple([*_topics(), *_functions(), *_methods(), *_exceptions(), *_modules()])


def passages() -> list[Passage]:
    """Every passage, in a fixed order."""
    return list(_all_passages())


def questions(seed: int = 0) -> list[Question]:
    """Questions whose exact answer follows from a signature, a class's bases or the module a name stands in."""
    return [*_default_questions(seed), *_base_questions(seed), *_module_questions(seed)]


def _topics() -> Iterator[Passage]:
    from pydoc_data.topics import topics  # 0.5 MB of text: read when asked for

    for name in TOPICS:
        if name in topics:
            paragraphs = [_squeeze(part) for part in re.split(r"\n\s*\n", topics[name])]
            for number, text in enumerate(_packed(paragraphs, f"Python — {name}. ")[:_TOPIC_PASSAGES], start=1):
                yield _passage(f"python/topic/{name}-{number}", f"Python — {name}", text, f"topic-{name}", "language")


def _functions() -> Iterator[Passage]:
    for name in sorted(vars(builtins)):
        value = getattr(builtins, name)
        if inspect.isbuiltin(value) and not name.startswith("_"):
            yield from _described(f"python/builtins/{name}", "builtins", name, value)


def _methods() -> Iterator[Passage]:
    for owner in TYPES:
        for name in sorted(vars(owner)):
            if not name.startswith("_") and callable(getattr(owner, name)):
                full = f"{owner.__name__}.{name}"
                yield from _described(f"python/{full}", owner.__name__, full, getattr(owner, name))


def _modules() -> Iterator[Passage]:
    for module in MODULES:
        for name, value in _members(module):
            origin = f", from the module {module} of the standard library"
            yield from _described(f"python/{module}.{name}", module, f"{module}.{name}", value, origin)


def _members(module: str) -> Iterator[tuple[str, object]]:
    """The public functions and classes that a module defines itself."""
    loaded = importlib.import_module(module)
    for name in sorted(_public(loaded)):
        value = getattr(loaded, name)
        if (inspect.isclass(value) or inspect.isroutine(value)) and _home(value) == module:
            yield name, value


def _public(module: ModuleType) -> list[str]:
    return [name for name in getattr(module, "__all__", vars(module)) if not name.startswith("_")]


def _home(value: object) -> str:
    """The module a value says it comes from; C helpers say _json, _heapq, ..."""
    return (getattr(value, "__module__", "") or "").lstrip("_")


def _exceptions() -> Iterator[Passage]:
    for error in _errors():
        doc = _squeeze(inspect.getdoc(error) or "")
        title = f"Python — {error.__name__}"
        text = f"{title}, a built-in exception. It derives from {error.__bases__[0].__name__}. {doc}"
        yield _passage(f"python/exception/{error.__name__}", title, text, error.__name__, "exception")


def _errors() -> list[type[BaseException]]:
    """Built-in exceptions with one base, without the aliases of OSError."""
    named = sorted(vars(builtins).items())
    found = [value for name, value in named if inspect.isclass(value) and value.__name__ == name]
    return [value for value in found if issubclass(value, BaseException) and len(value.__bases__) == 1]


def _described(key: str, group: str, name: str, value: object, origin: str = "") -> Iterator[Passage]:
    doc = inspect.getdoc(value)
    if not doc:
        return
    title = f"Python — {name}{signature(value)}"
    paragraphs = [_squeeze(part) for part in re.split(r"\n\s*\n", doc)]
    texts = _packed(paragraphs, f"{title}{origin}. ")
    if texts:
        yield _passage(key, title, texts[0], group, "api")


def signature(value: object) -> str:
    """(x, /, *, key=None), or nothing where a callable does not tell."""
    try:
        return re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(value)))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""


def _packed(paragraphs: list[str], header: str) -> list[str]:
    """Paragraphs in as few texts as fit the limit, each behind the header; a longer paragraph is cut at a sentence."""
    room = PASSAGE_LIMIT - len(header)
    texts: list[str] = []
    for paragraph in filter(None, (_first_sentences(part, room) for part in paragraphs)):
        if texts and len(texts[-1]) + 1 + len(paragraph) <= room:
            texts[-1] += f" {paragraph}"
        else:
            texts.append(paragraph)
    return [header + text for text in texts]


def _first_sentences(text: str, room: int) -> str:
    if len(text) <= room:
        return text
    end = text.rfind(". ", 0, room)
    return text[: end + 1] if end > 0 else ""


def _squeeze(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip(" *=~-")


def _passage(key: str, title: str, text: str, group: str, tag: str) -> Passage:
    return Passage(key, title, text, SOURCE, "python", ("python", tag), f"python/{group}")


def _default_questions(seed: int) -> Iterator[Question]:
    wordings = (
        "What is the default value of the parameter {x} of Python's {f}?",
        "Which value does {x} have when {f} is called in Python without it?",
    )
    for passage in _all_passages():
        head = re.match(r"Python — ([\w.]+)\((.*)\)", passage.title)
        for name, default in re.findall(r"(\w+)=('[^',]*'|True|-?\d+(?:\.\d+)?)(?=[,)]|$)", head[2] if head else ""):
            if head is not None and default != "''":
                fact = f"{passage.key}/{name}"
                yield _ask(
                    fact, "py_default", wordings, (default,), passage.key, passage.group, seed, x=name, f=head[1]
                )


def _base_questions(seed: int) -> Iterator[Question]:
    wordings = (
        "From which class does Python's exception {x} derive?",
        "What is the base class of {x} in Python?",
    )
    for error in _errors():
        base = error.__bases__[0].__name__
        key = f"python/exception/{error.__name__}"
        if base not in ("Exception", "object"):
            yield _ask(
                f"{key}/base", "py_base", wordings, (base,), key, f"python/{error.__name__}", seed, x=error.__name__
            )


def _module_questions(seed: int) -> Iterator[Question]:
    wordings = (
        "Which module of Python's standard library provides {x}?",
        "From which Python module is {x} imported?",
    )
    told = {passage.key for passage in _all_passages()}
    owners: dict[str, list[str]] = {}
    for module in MODULES:
        for name, _ in _members(module):
            if f"python/{module}.{name}" in told:
                owners.setdefault(name, []).append(module)
    for name, modules in owners.items():
        key = f"python/{modules[0]}.{name}"
        elsewhere = hasattr(builtins, name) or any(hasattr(owner, name) for owner in TYPES)
        if len(modules) == 1 and not elsewhere and modules[0].casefold() not in name.casefold():
            yield _ask(f"{key}/module", "py_module", wordings, (modules[0],), key, f"python/{modules[0]}", seed, x=name)


def _ask(
    fact: str, kind: str, wordings: tuple[str, ...], gold: tuple[str, ...], passage: str, group: str, seed: int,
    **names: str,
) -> Question:  # fmt: skip
    wording = int(share(fact, f"wording-{seed}") * len(wordings))
    text = wordings[wording].format(**names)
    return Question(f"{fact}/{wording}", text, gold, kind, "python", split_of(group), group, passage, fact)

"""Does the champion serve? Its golden vectors and one live request say so; one that does not is rolled back.

Knows nothing of nights and flows. The gateway alone writes its cache: it is asked, and given the time to reconcile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from ruvllm.database.pool import Database
from ruvllm.errors import BundleError, ProcessError
from ruvllm.registry import ledger, promotion
from ruvllm.settings import Settings

Result = dict[str, Any]
QUESTION = "What is the capital of Ghana?"
_BY = "flows/serve"  # who rolls back
log = logging.getLogger(__name__)


class Loaded(Protocol):
    """A champion whose files, hashes and golden vectors were verified as it was loaded."""

    @property
    def version(self) -> str: ...


def verify_champion(
    settings: Settings, database: Database, load: Callable[[], Loaded | None], may_roll_back: bool
) -> Result:
    """What a live request answered; after a rollback what the champion before answered, and why it is that one.

    Args:
        load: the ledger's champion, verified; None before the first promotion.
        may_roll_back: whether the champion is this night's: an older one has served already.

    Raises:
        BundleError, ProcessError: it does not serve, and may not or cannot be rolled back.
    """
    try:
        return _ask(settings, load)
    except (BundleError, ProcessError) as error:
        if not (may_roll_back and _has_earlier(database)):
            raise
        log.warning("the new champion does not serve and is rolled back: %s", error)
        row = promotion.rollback(settings, database, _BY, str(error)[:500])
        return {**_ask(settings, load), "rolled_back": row.previous, "why": str(error)}


def _ask(settings: Settings, load: Callable[[], Loaded | None]) -> Result:
    from ruvllm.serving.probe import ask_gateway

    champion = load()
    if champion is None:
        return {"served": False, "why": "no version has been promoted yet"}
    reply = ask_gateway(settings, champion.version, QUESTION)
    if not reply.text.strip():
        raise ProcessError(f"gateway: router {champion.version} answered {QUESTION!r} with nothing")
    return {"served": True, "asked": reply.question, "answer": reply.text, "router_version": reply.router_version}


def _has_earlier(database: Database) -> bool:
    with database.transaction() as connection:
        return len(ledger.champions(ledger.history(connection))) > 1

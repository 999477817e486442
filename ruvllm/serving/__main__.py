"""Runs the gateway until it is stopped: `python -m ruvllm.serving` and `ruvllm serve`. SIGTERM ends it within 30 s."""

from __future__ import annotations

import importlib.util
import logging
import signal
import socket
import sys
from contextlib import ExitStack

from ruvllm.errors import ProcessError, RuvllmError
from ruvllm.settings import Settings, load_settings

DRAIN_S = 24  # for who is inside when the signal comes
_CUT_OFF_S = 4  # and then for what is written still
_KEEP_ALIVE_S = 5
log = logging.getLogger("ruvllm.serving")


def main(settings: Settings | None = None) -> None:
    """Serve on the settings' host and port until a signal comes.

    Raises:
        ProcessError: the port is taken, or uvicorn's fast parts are not installed.
        RuvllmError: a part of the gateway could not be opened.
    """
    import uvicorn

    from ruvllm.ports import ports
    from ruvllm.serving.app import create_app
    from ruvllm.serving.build import build_service
    from ruvllm.serving.journal import Journal
    from ruvllm.serving.server import GatewayServer, TimelyHeaders
    from ruvllm.serving.tracing import open_tracings

    settings = settings or load_settings()
    _log_lines()
    require_fast_parts()
    signal.signal(signal.SIGTERM, _end)  # the server drains first, then gives the signal back
    with listen(settings.host, ports(settings).gateway) as door, ExitStack() as opened:
        tracings = open_tracings(settings)
        for tracing in tracings:
            opened.callback(tracing.close)
        service = build_service(settings)
        app = create_app(settings, service, Journal(settings.log_prompts, tracings))
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http=TimelyHeaders,
            access_log=False,
            server_header=False,
            log_config=None,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_CUT_OFF_S,
        )
        log.info("listening on http://%s:%s", *door.getsockname()[:2])
        GatewayServer(config, service, DRAIN_S).run(sockets=[door])


def _log_lines() -> None:
    """JSON, one object a line."""
    from ruvllm.serving.journal import JsonLines

    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _end(*_: object) -> None:
    sys.exit(0)


def require_fast_parts() -> None:
    """uvicorn falls back in silence to parts that take twice the time a request.

    Raises:
        ProcessError: uvloop or httptools is not installed.
    """
    missing = [name for name in ("uvloop", "httptools") if importlib.util.find_spec(name) is None]
    if missing:
        raise ProcessError(f"gateway: {' and '.join(missing)} not installed; run pip install 'uvicorn[standard]'")


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; bound before models and memory are opened, so that a taken port is known at once.

    Raises:
        ProcessError: the port is taken or may not be used.
    """
    door = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((host, port))
    except OSError as error:
        door.close()
        raise ProcessError(
            f"gateway: port {port} of {host}: {error.strerror or error}; stop what uses it (ruvllm down), "
            "or choose another with RUVLLM_GATEWAY_PORT"
        ) from error
    return door


if __name__ == "__main__":
    try:
        main()
    except RuvllmError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)

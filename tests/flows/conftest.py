"""Flows in this process speak to the test run's own Prefect server, never to a temporary one."""

import pytest


@pytest.fixture
def prefect_client(prefect_api, tmp_path):
    """Prefect read the environment when it was imported, so its settings are changed and not the environment."""
    from prefect.logging.handlers import APILogHandler
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect_api, PREFECT_HOME: tmp_path / "prefect"}):
        yield prefect_api
        APILogHandler().flush()  # while the server is still there to take them

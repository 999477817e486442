"""The served flows are on their schedules: a cron deployment really gets scheduled runs from the server."""

import time

from prefect.client.orchestration import get_client
from prefect.schedules import Cron

from flows.nightly import nightly


def test_a_served_nightly_gets_runs_from_its_cron(prefect_client):
    """SQLAlchemy 2.1 breaks this silently: the server is healthy and never creates a run."""
    deployment = nightly.to_deployment("cron-test", schedule=Cron("0 2 * * *", timezone="Europe/Berlin"))
    deployment_id = deployment.apply()
    with get_client(sync_client=True) as client:
        ends = time.monotonic() + 60
        while not (runs := _runs(client, deployment_id)) and time.monotonic() < ends:
            time.sleep(0.2)
        client.delete_deployment(deployment_id)
    assert runs
    assert all(run.state.is_scheduled() for run in runs)


def _runs(client, deployment_id):
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

    return client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id])))

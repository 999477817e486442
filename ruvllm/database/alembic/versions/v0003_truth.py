"""Tenants in every key, packed adjacency, the change log."""

from ruvllm.database.migrate import apply

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    apply("0003_truth.sql")

"""Core tables."""

from ruvllm.database.migrate import apply, write_encoder

revision = "0001"
down_revision = None


def upgrade() -> None:
    apply("0001_core.sql")
    write_encoder()

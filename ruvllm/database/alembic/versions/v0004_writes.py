"""writes"""

from ruvllm.database.migrate import apply

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    apply("0004_writes.sql")

"""tidy"""

from ruvllm.database.migrate import apply

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    apply("0006_tidy.sql")

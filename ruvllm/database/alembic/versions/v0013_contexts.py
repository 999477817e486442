"""contexts"""

from ruvllm.database.migrate import apply

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    apply("0013_contexts.sql")

"""walk"""

from ruvllm.database.migrate import apply

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    apply("0011_walk.sql")

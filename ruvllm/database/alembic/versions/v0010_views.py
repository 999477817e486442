"""views"""

from ruvllm.database.migrate import apply

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    for name in ("0010_views.sql", "../views/decisions.sql", "../views/learning.sql", "../views/memory.sql"):
        apply(name)

"""While nobody asks, a tier of this machine judges answers of which nobody said anything, one at a time.

Knows nothing of HTTP or of how a judge scores. It shares the tier's process with requests, so it looks before each
answer whether anybody asks, and whoever comes in between waits for one judgement at most. Model servers elsewhere are
no judges here: an answer may be confidential.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ruvllm.database.pool import Database
from ruvllm.errors import ModelFileError
from ruvllm.inference.backends import is_remote
from ruvllm.inference.files import ensure, verify
from ruvllm.inference.judge.judging import Judging
from ruvllm.inference.pool import ModelPool
from ruvllm.serving.background import JudgeReport, Judges, judge_some
from ruvllm.serving.tenants import tenant_database
from ruvllm.settings import Settings

AT_ONCE = 1  # answers between two looks at who asks


class IdleJudge:
    """Of one gateway. `open` gives the judge for a tenant's database; it may take its time, and is asked once each."""

    def __init__(self, database: Database, open: Callable[[Database], Judges], idle: Callable[[], bool]) -> None:
        self._database, self._open, self._idle = database, open, idle
        self._judges: dict[str, Judges] = {}
        self.refused = ""  # whose calibrations did not let it judge, the last time: nothing was taken up for them

    def judge(self, tenants: Iterable[str]) -> list[JudgeReport]:
        """Judge what waits, until somebody asks or nothing is left.

        Raises:
            DatabaseError: Postgres is away.
            InferenceError, ModelFileError: the judge could not be opened or failed; what it had leased waits.
        """
        done: list[JudgeReport] = []
        refused: list[str] = []
        for tenant in tenants:
            database = tenant_database(self._database, tenant)
            report = JudgeReport()
            while self._idle() and (report := judge_some(database, self._of(database), AT_ONCE)).taken:
                done.append(report)
            if report.refused:
                refused.append(f"tenant {tenant}: {report.refused}")
        self.refused = "; ".join(refused)
        return done

    def _of(self, database: Database) -> Judges:
        if database.tenant not in self._judges:
            self._judges[database.tenant] = self._open(database)
        return self._judges[database.tenant]


def judge_of(settings: Settings, pool: ModelPool, database: Database) -> Judging:
    """The largest tier of `pool` that runs on this machine, as judge of that database's tenant.

    Raises:
        ModelFileError: there is none, or its file is missing or altered.
    """
    here = [place for place, tier in enumerate(pool.ladder.tiers) if not is_remote(tier, settings)]
    if not here:
        raise ModelFileError(
            f"judge: every tier of {pool.ladder.name} is a model server's, want one with a file here; "
            "unset RUVLLM_JUDGE or leave a tier out of RUVLLM_VLLM"
        )
    tier = pool.ladder.tiers[here[-1]]
    sha256 = verify(tier, settings, path=ensure(tier, settings))
    return Judging(database, pool.model(here[-1]), tier, sha256, settings.deadline_s)

"""infra/audit.sh where no index is reachable: it says that nothing was looked at, and does not pass."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ruvllm.settings import PROJECT_ROOT


def test_an_audit_that_cannot_be_done_says_so(tmp_path: Path) -> None:
    offline = {
        "PYTHON": sys.executable, "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_EXTRA_INDEX_URL": "", "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1", "PIP_FIND_LINKS": "",
    }  # fmt: skip
    done = subprocess.run(
        ["infra/audit.sh", str(tmp_path / "audit")], cwd=PROJECT_ROOT, env={**os.environ, **offline},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "audit: not done, pip-audit cannot be installed" in done.stderr
    assert not (tmp_path / "audit").exists()

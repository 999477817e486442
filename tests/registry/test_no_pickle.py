"""Nothing is unpickled where a router is loaded, whoever imports what; an audit hook watches every unpickler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ruvllm.router.fake import write_random_bundle
from ruvllm.settings import PROJECT_ROOT

# An audit hook sees every class that any unpickler resolves, whoever imported it.
_PROGRAM = """
import sys
seen = []
sys.addaudithook(lambda event, arguments: seen.append(arguments) if event == "pickle.find_class" else None)
from pathlib import Path
import numpy as np
bundle = Path(sys.argv[1])
from ruvllm.router.runtime import RouterRuntime
runtime = RouterRuntime.load(bundle)
if len(sys.argv) > 2:
    import pickle
    pickle.loads(pickle.dumps(Path("control")))
print(len(seen))
"""


def unpickled(*arguments: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *arguments], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_a_router_is_loaded_without_unpickling_anything(tmp_path: Path) -> None:
    write_random_bundle(tmp_path / "bundle")
    assert unpickled(str(tmp_path / "bundle")) == 0
    assert unpickled(str(tmp_path / "bundle"), "control") > 0  # the hook does see it

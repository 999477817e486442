"""The promoted router as an MLflow model, for whoever wants to try a version by hand; logged as code, never pickled.

MLflow runs this file by its path; the gateway never does. Input: features (n, 128); output: one decision a row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from ruvllm.inference.types import BINS, ROUTED_BINS
from ruvllm.router.decision import Allowed
from ruvllm.router.runtime import RouterRuntime


class Router(PythonModel):
    """Loads the bundle of its version and decides as the gateway would, without exploration or fallback."""

    def load_context(self, context: Any) -> None:
        self.runtime = RouterRuntime.load(Path(context.artifacts["bundle"]))

    # the hint is one that MLflow knows; of a more exact one it would make another signature
    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> list[dict[str, Any]]:
        features = np.ascontiguousarray(model_input, dtype=np.float32)  # (n, 128)
        return [self._decide(row) for row in features]

    def _decide(self, features: Any) -> dict[str, Any]:
        tiers = self.runtime.manifest.tiers
        allowed = Allowed(tuple(bool(name) for name in tiers), tuple(b in ROUTED_BINS for b in BINS))
        outputs = self.runtime.decide(features, None, allowed)
        return {
            "tier": tiers[int(np.argmax(outputs.model_probs))],
            "context_bin": BINS[int(np.argmax(outputs.context_probs))],
            "temperature": outputs.temperature,
            "top_p": outputs.top_p,
            "confidence": outputs.confidence,
        }


set_model(Router())

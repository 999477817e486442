"""What the model reads: attention over the retrieved neighbourhood, and the context that it builds.

Knows nothing of models that answer, of HTTP or of flows. A light package: torch is imported only by `layers`, which
training uses; serving runs `runtime` on numpy.
"""

"""The judge: a model that scores answers from 1 to 5, off the request path, and is believed only as far as gold says.

Knows nothing of HTTP, Prefect or MLflow. `judge` scores, `scoring` keeps the scores, `assessment` holds them against
gold, `labels` says whether a judge may label at all. Its prompt and its bias are its own; its word counts only where
its agreement with gold leaves chance out (docs/judge.md).
"""

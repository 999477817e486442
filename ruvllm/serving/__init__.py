"""The gateway: OpenAI's HTTP over one Answerer. Its process imports neither torch, MLflow nor Prefect."""

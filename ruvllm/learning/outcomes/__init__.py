"""Public outcome files: reading, splitting and features of them, and the predictors that compete on them."""

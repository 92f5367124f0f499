"""What to build under a budget: projection, the Optuna search, its page."""

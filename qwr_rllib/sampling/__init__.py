"""Collection of rows: the rollout workers' part, and the collector. Uses Ray."""

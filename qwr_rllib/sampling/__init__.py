"""Collection: the rollout workers' part, and the collector that asks them. Knows Ray."""

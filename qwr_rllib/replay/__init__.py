"""The replay: a store of trajectories, its Ray actor and the learner's copy."""

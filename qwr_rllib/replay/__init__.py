"""Where the collected trajectories live: the store, its Ray actor and the learner's view."""

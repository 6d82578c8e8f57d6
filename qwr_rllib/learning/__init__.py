"""Networks, losses and the learner. Knows torch only."""

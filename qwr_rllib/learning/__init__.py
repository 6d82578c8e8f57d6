"""Networks, losses and the learner. No module here imports Ray."""

"""The algorithms on RLlib: configs, algorithm classes, policy, checkpoints."""

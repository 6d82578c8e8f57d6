"""What rollout workers do, and who asks them to. Knows Ray."""

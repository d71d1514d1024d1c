"""The configs: one Hydra group a room's choices."""

"""Memory policies: one file per policy, chosen in a config."""

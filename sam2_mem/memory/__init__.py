"""The memory bank: policies, and the rows that they read."""

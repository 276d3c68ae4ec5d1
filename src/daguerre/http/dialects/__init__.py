"""Other people's wire formats, onto the same jobs: a dialect translates, and does nothing else."""

"""What outlives the process: the picture files and the journal of jobs."""

"""What one runs: a file for each training stage, the trainer they share, generation, and the command line."""

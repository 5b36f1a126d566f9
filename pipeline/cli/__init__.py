"""The command line: parses, calls the runtime, prints. Exit codes are made here and nowhere else."""

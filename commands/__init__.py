"""The commands, a file for each part of the job; cli.py gathers them. Nothing heavy is imported before one runs."""

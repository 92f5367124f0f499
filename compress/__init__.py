"""What to do to the final model: passes, and a file that is really that small."""

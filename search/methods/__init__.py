"""Methods that find widths by pruning: each takes a Task and gives a Proposal."""

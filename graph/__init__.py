"""A model seen as channels: trace, tie, price, select, resize."""

"""What can be built: families as data tables, and the Architecture that records a choice among them."""

"""Tables and pages built from stored results, and the pick from them."""

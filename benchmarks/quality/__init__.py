"""The laboratory for pictures: what a setting changes, seen by numbers and by a checker that looks for what was asked."""

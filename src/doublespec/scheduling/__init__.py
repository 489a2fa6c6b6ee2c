"""Which method to decode with next, by what was measured."""

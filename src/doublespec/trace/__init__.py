"""What happened in an answer, as a timeline, and the files that keep it."""

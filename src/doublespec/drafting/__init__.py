"""How guesses are made. Nothing here knows whether a guess was kept."""

"""How the bundled model pair is made."""

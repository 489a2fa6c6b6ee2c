"""Text that was seen before, found by its n-grams. Knows no models and no acceptance."""

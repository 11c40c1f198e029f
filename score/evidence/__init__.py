"""How far a ranking is to be trusted, from the cache alone: replicates, chance, controls, other settings, other rankings."""

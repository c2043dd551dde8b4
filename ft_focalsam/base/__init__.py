"""What every layer may use: errors in one sentence, ranges, registries, files that are there whole or not at all."""

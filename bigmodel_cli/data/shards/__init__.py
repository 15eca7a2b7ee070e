"""Data in shards: read in place, from folders or over a network, whatever their number."""

"""Metrics of the field, as functions of statistics that add up over items."""

"""The types of numbers in options and records, with their bounds.

NaN, infinity, a negative or an absurd number is refused before anything is built.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Count = Annotated[int, Field(gt=0, le=10**9)]
"""A number of things, at least one."""
Steps = Annotated[int, Field(gt=0, le=10**10)]
"""A number of optimizer steps."""
Natural = Annotated[int, Field(ge=0, le=10**10)]
"""A number of things, zero included."""
Positive = Annotated[float, Field(gt=0, le=1e6)]
NonNegative = Annotated[float, Field(ge=0, le=1e6)]
Probability = Annotated[float, Field(ge=0, lt=1)]
"""A dropout probability, below 1."""
Fraction = Annotated[float, Field(ge=0, le=1)]
MOST_BEAMS = 1000
Beams = Annotated[int, Field(gt=0, le=MOST_BEAMS)]
"""Beam width."""
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
PADDING = -1
"""Fills a batch's rows of integers up to the longest: not a token, label or unit.

Models ignore it, and no loss counts it.
"""
Finite = Annotated[float, Field(ge=-1e9, le=1e9)]
Side = Annotated[int, Field(gt=0, le=1_000_000)]

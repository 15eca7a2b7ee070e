"""bigmodel: the workbench for the structure of AI models."""

__version__ = "0.1.0"

"""Specs: what operators ask for, as YAML with the place of every error. See `models` and `documents`."""

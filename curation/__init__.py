"""Curation: animated films, or the official release, to a dataset directory."""

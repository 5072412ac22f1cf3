"""Plain torch under the stages: no Lightning, no files."""

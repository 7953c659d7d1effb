"""A page and a small HTTP API for one model, on this machine."""

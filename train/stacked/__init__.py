"""The engine room of systems that train by gradient: many runs as one computation."""

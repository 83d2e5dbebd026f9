"""The systems that stage 2 can train, one module each."""

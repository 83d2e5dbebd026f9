"""The engine room of systems that train by gradient: many runs of one shape as one stack of tensors."""

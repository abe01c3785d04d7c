"""What runs a batch: one Protocol (`base`) and its implementations."""

"""Tables, states and all SQL."""
